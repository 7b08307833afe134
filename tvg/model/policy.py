"""The policy: a video-language model that scores completions at the true times of their clips.

`Policy` is the only entrance to the weights. Strategies that shard them gather the weights when one
of `FORWARD_METHODS` is called, so no other code may use the head, the embeddings or the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tvg.core.logprobs import token_logprobs
from tvg.model.completion_states import FORWARDS
from tvg.model.prefix_attention import share_prefix
from tvg.model.vision import encode_trunk, is_trunk_frozen
from tvg.model.wrapped_model import WrappedModel
from tvg.types import PromptBatch

# Methods that compute with the weights. Strategies that shard weights gather them in each call.
FORWARD_METHODS = ("forward", "encode_clips", "prefill", "decode", "generate")


class RowCache(Protocol):
    """Stores keys and values of a packed row and attends to them (`tvg.rollout.prefix_cache`)."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Maps the queries of a row, [1, H, T, d], to outputs [1, T, H, d]."""


class Policy(WrappedModel):
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
        super().__init__(model=model, suppressed_ids=suppressed_ids)
        if forward_by not in FORWARDS:
            raise ValueError(
                f"policy.forward: expected one of {sorted(FORWARDS)}, got {forward_by!r}"
            )
        self.forward_by = forward_by
        share_prefix(model)
        self.eos_ids = list(eos_ids)
        self.pad_id = pad_id

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
            self.head(),
            completion_ids[chosen],
            temperature=temperature,
            suppressed_ids=self.suppressed_ids,
        )
        empty = torch.zeros(completion_ids.shape, dtype=logprobs.dtype, device=logprobs.device)
        return empty.masked_scatter(chosen, logprobs), empty.masked_scatter(chosen, entropy)

    # -- sampling -------------------------------------------------------------------------------

    def prefill(
        self, prompts: PromptBatch, cache: RowCache, *, group_size: int, temperature: float
    ) -> Tensor:
        """Passes prompts through the model and returns the logits of each completion's first token.

        Args:
            prompts: B prompts.
            cache: receives the keys and values of the prompts, packed into one row without padding.
            group_size: completions per prompt, G.
            temperature: the logits are divided by it; suppressed tokens have -inf.

        Returns:
            float32 [N, V], N = B * G.
        """
        is_real = prompts.attention_mask.bool()
        embedded = self.embed(prompts)
        states = self.language_states(
            embedded.embeds[is_real].unsqueeze(0),
            self.position_ids(prompts)[:, is_real].unsqueeze(1),
            packed_row=cache,
            **embedded.options(embedded.is_video[is_real].unsqueeze(0)),
        )
        return self.logits(states[0].repeat_interleave(group_size, dim=0), temperature)

    def decode(
        self, ids: Tensor, positions: Tensor, cache: RowCache, *, temperature: float
    ) -> Tensor:
        """Passes one token of each completion through the model; returns the next logits.

        Args:
            ids: int64 [N].
            positions: int64 [3, N].
            cache: contains the keys and values of the tokens so far; receives those of `ids`.
            temperature: as in `prefill`.

        Returns:
            float32 [N, V].
        """
        embeds = self.embed_tokens(ids).unsqueeze(0)
        states = self.language_states(embeds, positions.unsqueeze(1), packed_row=cache)
        return self.logits(states[0], temperature)

    def generate(
        self,
        prompts: PromptBatch,
        *,
        before_head: Callable[[nn.Module, tuple[Tensor, ...]], None],
        **options: Any,
    ) -> Tensor:
        """Calls Hugging Face's `generate` at the policy's positions; returns completions [B, C].

        Args:
            prompts: B prompts.
            before_head: called with the head and its arguments before each token.
            options: arguments of `generate`.
        """
        embedded = self.embed(prompts)
        head = self.model.lm_head.register_forward_pre_hook(before_head)
        with head, embedded.at_first_call(self.model.model.language_model):
            ids: Tensor = self.model.generate(
                inputs_embeds=embedded.embeds,
                attention_mask=prompts.attention_mask,
                position_ids=self.language_positions(self.position_ids(prompts)),
                **options,
            )
        return ids
