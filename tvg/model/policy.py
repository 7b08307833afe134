"""The policy: a video-language model that scores completions at the true times of their clips.

Two functions compute the hidden states that predict completion tokens, with equal results:

- `repeated` copies prompt and video for every completion. It uses only Hugging Face code, does G
  times the work, and serves as the oracle in tests.
- `shared_prefix` computes each prompt once, in one row without padding.

Both return [M, D]: the states of the M unmasked completion tokens, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tvg.core.logprobs import token_logprobs
from tvg.core.positions import extend_positions
from tvg.model.embedding import EmbeddedPrompts
from tvg.model.families import family_of
from tvg.model.packing import pack
from tvg.model.prefix_attention import share_prefix
from tvg.model.vision import encode_trunk, is_trunk_frozen, merge_features
from tvg.types import PromptBatch


class Policy(nn.Module):
    """Wraps a Hugging Face model; sampling, policy and reference all read prompts through it.

    Args:
        model: a model of one of `tvg.model.families`.
        suppressed_ids: tokens that are never sampled and have probability 0 (vision tokens).
        eos_ids: tokens that end a completion.
        pad_id: padding token after the end of a completion.
        forward_by: "shared_prefix" computes each prompt once, "repeated" once per completion. The
            results are the same.

    Raises:
        ValueError: `forward_by` is unknown, or the model's attention cannot share a prefix.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        suppressed_ids: list[int],
        eos_ids: list[int],
        pad_id: int,
        forward_by: str,
    ) -> None:
        super().__init__()
        if forward_by not in FORWARDS:
            raise ValueError(
                f"policy.forward: expected one of {sorted(FORWARDS)}, got {forward_by!r}"
            )
        self.forward_by = forward_by
        share_prefix(model)
        self.model: Any = model
        self.eos_ids = list(eos_ids)
        self.pad_id = pad_id
        self.suppressed_ids: Tensor
        self.register_buffer(
            "suppressed_ids", torch.tensor(suppressed_ids, dtype=torch.int64), persistent=False
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    def position_ids(self, prompts: PromptBatch) -> Tensor:
        """Returns the multimodal rotary positions of the prompts, int64 [3, B, P]."""
        config = self.model.config
        return family_of(config).position_ids(config, prompts)

    def language_positions(self, positions: Tensor) -> Tensor:
        """Converts positions [3, rows, tokens] to the form that the language model expects."""
        return family_of(self.model.config).language_positions(positions)

    def encode_clips(self, prompts: PromptBatch) -> PromptBatch:
        """Returns the prompts with features of the frozen vision trunk instead of pixels.

        Sampling, policy and reference then share one pass of the trunk. If the trunk is trained,
        its output changes with every update, and the prompts are returned unchanged.
        """
        is_encoded = prompts.video_features is not None
        if is_encoded or len(prompts) == 0 or not is_trunk_frozen(self.model):
            return prompts
        assert prompts.pixel_values_videos is not None
        with torch.no_grad():
            features = encode_trunk(self.model, prompts.pixel_values_videos, prompts.video_grid_thw)
        return replace(prompts, pixel_values_videos=None, video_features=features)

    def embed(self, prompts: PromptBatch) -> EmbeddedPrompts:
        """Returns token embeddings with the clips inserted; each clip is encoded once."""
        embeds = self.model.get_input_embeddings()(prompts.input_ids)
        features = prompts.video_features
        if features is None:
            assert prompts.pixel_values_videos is not None
            features = encode_trunk(self.model, prompts.pixel_values_videos, prompts.video_grid_thw)
        tokens = merge_features(self.model, features)
        video = tokens.embeds.to(embeds.device, embeds.dtype)
        config = self.model.config
        is_video = family_of(config).is_video(config, prompts.input_ids)
        assert int(is_video.sum()) == video.shape[0], "video placeholders and features differ"
        return EmbeddedPrompts(
            embeds=embeds.masked_scatter(is_video.unsqueeze(-1), video),
            is_video=is_video,
            deepstack=tokens.deepstack,
        )

    def embed_prompts(self, prompts: PromptBatch) -> Tensor:
        """Returns only the embeddings of `embed`: [B, P, D]."""
        return self.embed(prompts).embeds

    def forward(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        *,
        group_size: int,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Returns the log-probability and the entropy of every completion token.

        Their distribution is the sampler's: softmax(logits / temperature) over all tokens except
        the suppressed ones.

        Args:
            prompts: B prompts.
            completion_ids: int64 [N, C], N = B * group_size, row n answers prompt n // group_size.
            completion_mask: int64 [N, C], 1 for tokens to score.
            group_size: completions per prompt.
            temperature: temperature of the sampler.

        Returns:
            (logprobs, entropy), float32 [N, C], both differentiable; 0 where masked.
        """
        states = FORWARDS[self.forward_by]
        hidden = states(self, prompts, completion_ids, completion_mask, group_size)
        chosen = completion_mask.bool()
        logprobs, entropy = token_logprobs(
            hidden,
            self.model.lm_head.weight,
            completion_ids[chosen],
            temperature=temperature,
            suppressed_ids=self.suppressed_ids,
        )
        empty = torch.zeros(completion_ids.shape, dtype=logprobs.dtype, device=logprobs.device)
        return empty.masked_scatter(chosen, logprobs), empty.masked_scatter(chosen, entropy)


CompletionStates = Callable[["Policy", PromptBatch, Tensor, Tensor, int], Tensor]


def repeated(
    policy: Policy,
    prompts: PromptBatch,
    completion_ids: Tensor,
    completion_mask: Tensor,
    group_size: int,
) -> Tensor:
    """Computes the states in rows of P + C tokens: every completion after a copy of its prompt."""
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
    """Computes the states in one row of T tokens that has every prompt once (see `packing`)."""
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
    """Returns the `attention_mask` argument for an attention function that masks internally."""
    layer_types = getattr(model.config.get_text_config(), "layer_types", None)
    return None if layer_types is None else dict.fromkeys(layer_types)


FORWARDS: dict[str, CompletionStates] = {"shared_prefix": shared_prefix, "repeated": repeated}
