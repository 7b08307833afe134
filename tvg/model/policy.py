"""The policy: a video-language model that scores completions at the true times of their clips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tvg.core.logprobs import token_logprobs
from tvg.model.completion_states import FORWARDS
from tvg.model.embedding import EmbeddedPrompts
from tvg.model.families import family_of
from tvg.model.prefix_attention import share_prefix
from tvg.model.vision import encode_trunk, is_trunk_frozen, merge_features
from tvg.types import PromptBatch


class Policy(nn.Module):
    """Wraps a Hugging Face model; sampling, policy and reference all read prompts through it.

    Args:
        model: a model of one of `tvg.model.families`.
        suppressed_ids: tokens that are never sampled and have no probability (vision tokens).
        eos_ids: tokens that end a completion.
        pad_id: padding token after the end of a completion.
        forward_by: scoring method: "shared_prefix" computes each prompt once, "repeated" once per
            completion; the results are the same.

    Raises:
        ValueError: unknown `forward_by`, or the model's attention cannot share a prefix.
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
        """Multimodal rotary positions of the prompts, int64 [3, B, P]."""
        config = self.model.config
        return family_of(config).position_ids(config, prompts)

    def language_positions(self, positions: Tensor) -> Tensor:
        """Converts positions [3, rows, tokens] to the form that the language model expects."""
        return family_of(self.model.config).language_positions(positions)

    def encode_clips(self, prompts: PromptBatch) -> PromptBatch:
        """Returns the prompts with features of the frozen vision trunk instead of pixels.

        Sampling, policy and reference then share one run of the trunk. If the trunk is trained, its
        output is valid only for one set of weights, and the prompts are returned unchanged.
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
        """Returns only the embeddings: [B, P, D]."""
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
        """Log-probability of every completion token, and the entropy of its distribution.

        The distribution is that of the sampler: softmax(logits / temperature) over all tokens
        except the suppressed ones.

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
