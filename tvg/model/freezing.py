"""Which parts of a video-language model are trained."""

from __future__ import annotations

from typing import Any

from torch import nn


def freeze_parts(model: Any, *, vision: bool, merger: bool, language: bool) -> None:
    """Switches gradients off for whole parts of a Qwen2.5-VL model.

    Args:
        model: a `Qwen2_5_VLForConditionalGeneration`.
        vision: freeze the vision trunk: everything in the tower but the merger.
        merger: freeze the merger, which projects vision into the language model.
        language: freeze the language model, its embeddings and its head.

    Raises:
        ValueError: nothing is left to train.
    """
    if vision and merger and language:
        raise ValueError(
            "model.freeze_vision, model.freeze_merger and model.freeze_language are all true: "
            "nothing is left to train"
        )
    tower = model.model.visual
    _require_grad(tower, not vision)
    _require_grad(tower.merger, not merger)
    _require_grad(model.model.language_model, not language)
    _require_grad(model.lm_head, not language)


def _require_grad(module: nn.Module, flag: bool) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(flag)
