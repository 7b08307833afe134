"""Inputs of a language model: prompt embeddings, and features added after the first layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EmbeddedPrompts:
    """B prompts with their clips in place."""

    embeds: Tensor  # [B, P, D]
    is_video: Tensor  # bool [B, P]
    # [video tokens of the batch, D] each, one per layer; added after the first layers
    deepstack: tuple[Tensor, ...]

    def options(self, is_video: Tensor) -> dict[str, Any]:
        """Returns extra arguments of the language model's forward; empty without deepstack.

        Args:
            is_video: bool [rows, tokens], mask of the video tokens in the language model's input.
                They must be in the same order as in the prompts.
        """
        if not self.deepstack:
            return {}
        return {"visual_pos_masks": is_video, "deepstack_visual_embeds": list(self.deepstack)}

    @contextmanager
    def at_first_call(self, language_model: Any) -> Iterator[None]:
        """Passes `options` to the first call of a language model, the prefill of these prompts.

        `generate` needs this because it does not forward these arguments together with embeddings.
        """
        options = self.options(self.is_video)
        if not options:
            yield
            return

        def add(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            hook.remove()
            assert kwargs["inputs_embeds"].shape == self.embeds.shape, "call is not the prefill"
            return args, {**kwargs, **options}

        hook = language_model.register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
