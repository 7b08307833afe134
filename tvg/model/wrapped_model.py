"""Wraps a Hugging Face model: embeddings of prompts with clips, positions, and hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tvg.core.logprobs import token_logits
from tvg.model.embedding import EmbeddedPrompts
from tvg.model.families import family_of
from tvg.model.sharding import ShardedModule
from tvg.model.vision import encode_trunk, merge_features
from tvg.types import PromptBatch

if TYPE_CHECKING:
    from tvg.model.weight_reader import WeightReader  # imports transformers


class WrappedModel(ShardedModule):
    """Base class of the policy: the parts of a pass through the model.

    Only the forward methods of `Policy` may call the parts that read weights.

    Args:
        model: a model of one of `tvg.model.families`.
        suppressed_ids: tokens that are never sampled and have probability 0 (vision tokens).

    Attributes:
        weights: reads the weights of a model whose parameters are on the meta device; None: the
            model has its weights.
    """

    def __init__(self, *, model: nn.Module, suppressed_ids: list[int]) -> None:
        super().__init__()
        self.model: Any = model
        self.weights: WeightReader | None = None
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

    def embed(self, prompts: PromptBatch) -> EmbeddedPrompts:
        """Returns token embeddings with the clips inserted; each clip is encoded once."""
        embeds = self.embed_tokens(prompts.input_ids)
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

    def language_states(
        self, embeds: Tensor, positions: Tensor, *, packed_row: Any, **options: Any
    ) -> Tensor:
        """Returns the last hidden states of packed rows.

        Args:
            embeds: [1, T, D].
            positions: int64 [3, 1, T].
            packed_row: a `PackedRow` or a `RowCache`, passed to the attention.
            options: further arguments of the language model.
        """
        states: Tensor = self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=no_mask(self.model),
            position_ids=self.language_positions(positions),
            use_cache=False,
            packed_row=packed_row,
            **options,
        ).last_hidden_state
        return states

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Returns token embeddings, without clips: [..., D]."""
        embeds: Tensor = self.model.get_input_embeddings()(ids)
        return embeds

    def logits(self, states: Tensor, temperature: float) -> Tensor:
        """Returns the logits for sampling, [M, V], of states [M, D]; see `token_logits`."""
        return token_logits(
            states, self.head(), temperature=temperature, suppressed_ids=self.suppressed_ids
        )

    def head(self) -> Tensor:
        """Returns the weight of the head, [V, D]."""
        weight: Tensor = self.model.lm_head.weight
        return weight


def no_mask(model: Any) -> dict[str, None] | None:
    """Returns the `attention_mask` argument for an attention function that masks internally."""
    layer_types = getattr(model.config.get_text_config(), "layer_types", None)
    return None if layer_types is None else dict.fromkeys(layer_types)
