"""Two ways to compute the hidden states that predict completion tokens, with equal results.

`repeated` gives every completion its own copy of prompt and video. It is plain Hugging Face code,
costs G times the work, and serves as the oracle. `shared_prefix` computes each prompt once, in one
row without padding. Both return states in the order of the completion mask's ones, row by row:
[M, D].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvg.core.positions import extend_positions
from tvg.model.packing import pack
from tvg.types import PromptBatch

if TYPE_CHECKING:
    from tvg.model.policy import Policy

CompletionStates = Callable[["Policy", PromptBatch, Tensor, Tensor, int], Tensor]


def repeated(
    policy: Policy,
    prompts: PromptBatch,
    completion_ids: Tensor,
    completion_mask: Tensor,
    group_size: int,
) -> Tensor:
    """Puts every completion after its own copy of prompt and video, in rows of P + C tokens."""
    copies = prompts.repeat(group_size)
    positions = policy.position_ids(copies)
    after = extend_positions(positions[..., -1], completion_ids.shape[1])
    embedded = policy.embed(copies)
    completion_embeds = policy.model.get_input_embeddings()(completion_ids)
    no_video = torch.zeros_like(completion_mask, dtype=torch.bool)
    states: Tensor = policy.model.model.language_model(
        inputs_embeds=torch.cat([embedded.embeds, completion_embeds], dim=1),
        attention_mask=torch.cat([copies.attention_mask, completion_mask], dim=1),
        position_ids=policy.language_positions(torch.cat([positions, after], dim=-1)),
        use_cache=False,
        **embedded.options(torch.cat([embedded.is_video, no_video], dim=1)),
    ).last_hidden_state
    return states[:, copies.input_ids.shape[1] - 1 : -1][completion_mask.bool()]


def shared_prefix(
    policy: Policy,
    prompts: PromptBatch,
    completion_ids: Tensor,
    completion_mask: Tensor,
    group_size: int,
) -> Tensor:
    """Puts every prompt once, before its completions, in one row of T tokens (see `packing`)."""
    row = pack(prompts.attention_mask, completion_mask, group_size=group_size)
    is_prompt, is_real = prompts.attention_mask.bool(), completion_mask.bool()
    positions = policy.position_ids(prompts)
    after = extend_positions(
        positions[..., -1].repeat_interleave(group_size, dim=1), completion_ids.shape[1]
    )
    embedded = policy.embed(prompts)
    embeds, is_video = embedded.embeds[is_prompt], embedded.is_video[is_prompt]
    completion_embeds = policy.model.get_input_embeddings()(completion_ids[is_real])
    order = torch.cat([row.prompt_places, row.completion_places]).argsort()
    flat_embeds = torch.cat([embeds, completion_embeds.to(embeds.dtype)])[order]
    flat_video = torch.cat([is_video, is_video.new_zeros(len(completion_embeds))])[order]
    flat_positions = torch.cat([positions[:, is_prompt], after[:, is_real]], dim=1)[:, order]
    states: Tensor = policy.model.model.language_model(
        inputs_embeds=flat_embeds.unsqueeze(0),
        attention_mask=no_mask(policy.model),
        position_ids=policy.language_positions(flat_positions.unsqueeze(1)),
        use_cache=False,
        packed_row=row,
        **embedded.options(flat_video.unsqueeze(0)),
    ).last_hidden_state
    return states[0, row.sources]


def no_mask(model: Any) -> dict[str, None] | None:
    """The `attention_mask` argument for an attention function that does its own masking."""
    layer_types = getattr(model.config.get_text_config(), "layer_types", None)
    return None if layer_types is None else dict.fromkeys(layer_types)


FORWARDS: dict[str, CompletionStates] = {"shared_prefix": shared_prefix, "repeated": repeated}
