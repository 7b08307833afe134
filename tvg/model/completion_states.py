"""Two functions that compute the hidden states that predict completion tokens.

- `repeated` copies prompt and video for every completion. It uses only Hugging Face code, does G
  times the work, and serves as the oracle in tests.
- `shared_prefix` computes each prompt once, in one row without padding.

Both return [M, D]: the states of the M unmasked completion tokens, row by row. The results are
equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tvg.core.positions import extend_positions
from tvg.model.packing import pack
from tvg.model.wrapped_model import WrappedModel
from tvg.types import PromptBatch

CompletionStates = Callable[[WrappedModel, PromptBatch, Tensor, Tensor, int], Tensor]


def repeated(
    model: WrappedModel,
    prompts: PromptBatch,
    completion_ids: Tensor,
    completion_mask: Tensor,
    group_size: int,
) -> Tensor:
    """Computes the states in rows of P + C tokens: every completion after a copy of its prompt."""
    copies = prompts.repeat(group_size)
    positions = model.position_ids(copies)
    after = extend_positions(positions[..., -1], completion_ids.shape[1])
    embedded = model.embed(copies)
    completion_embeds = model.embed_tokens(completion_ids)
    no_video = torch.zeros_like(completion_mask, dtype=torch.bool)
    states: Tensor = model.model.model.language_model(
        inputs_embeds=torch.cat([embedded.embeds, completion_embeds], dim=1),
        attention_mask=torch.cat([copies.attention_mask, completion_mask], dim=1),
        position_ids=model.language_positions(torch.cat([positions, after], dim=-1)),
        use_cache=False,
        **embedded.options(torch.cat([embedded.is_video, no_video], dim=1)),
    ).last_hidden_state
    return states[:, copies.input_ids.shape[1] - 1 : -1][completion_mask.bool()]


def shared_prefix(
    model: WrappedModel,
    prompts: PromptBatch,
    completion_ids: Tensor,
    completion_mask: Tensor,
    group_size: int,
) -> Tensor:
    """Computes the states in one row of T tokens that has every prompt once (see `packing`)."""
    row = pack(prompts.attention_mask, completion_mask, group_size=group_size)
    is_prompt, is_real = prompts.attention_mask.bool(), completion_mask.bool()
    positions = model.position_ids(prompts)
    after = extend_positions(
        positions[..., -1].repeat_interleave(group_size, dim=1), completion_ids.shape[1]
    )
    embedded = model.embed(prompts)
    embeds, is_video = embedded.embeds[is_prompt], embedded.is_video[is_prompt]
    completion_embeds = model.embed_tokens(completion_ids[is_real])
    order = torch.cat([row.prompt_places, row.completion_places]).argsort()
    flat_embeds = torch.cat([embeds, completion_embeds.to(embeds.dtype)])[order]
    flat_video = torch.cat([is_video, is_video.new_zeros(len(completion_embeds))])[order]
    flat_positions = torch.cat([positions[:, is_prompt], after[:, is_real]], dim=1)[:, order]
    states = model.language_states(
        flat_embeds.unsqueeze(0),
        flat_positions.unsqueeze(1),
        packed_row=row,
        **embedded.options(flat_video.unsqueeze(0)),
    )
    return states[0, row.sources]


FORWARDS: dict[str, CompletionStates] = {"shared_prefix": shared_prefix, "repeated": repeated}
