"""Freezes parts of a video-language model: the vision trunk, the merger or the language model."""

from __future__ import annotations

from typing import Any

from torch import nn

from tvg.core.limits import PARTS, frozen_model_problems, refuse
from tvg.model.families import mergers, tower


def freeze_parts(model: Any, *, vision: bool, merger: bool, language: bool) -> None:
    """Disables gradients for the chosen parts of a model and enables them for the others.

    Args:
        model: a model of any family.
        vision: freeze the vision trunk: everything in the tower except the merger.
        merger: freeze the merger, which projects vision into the language model.
        language: freeze the language model, its embeddings and its head.

    Raises:
        ValueError: nothing is left to train.
    """
    is_frozen = {"vision": vision, "merger": merger, "language": language}
    refuse(frozen_model_problems([part for part in PARTS if is_frozen[part]]))
    parts = component_of_each(model)
    for parameter in model.parameters():
        parameter.requires_grad_(not is_frozen[parts[id(parameter)]])


def component_of_each(model: nn.Module) -> dict[int, str]:
    """Returns the part that each parameter belongs to, by the parameter's `id()`."""
    parts = {id(parameter): "language" for parameter in model.parameters()}
    parts |= {id(parameter): "vision" for parameter in tower(model).parameters()}
    for merger in mergers(model):
        parts |= {id(parameter): "merger" for parameter in merger.parameters()}
    return parts
