"""The parts of a video-language model, and which of them are trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from tvg.model.families import mergers, tower

PARTS = ("vision", "merger", "language")  # the vision trunk, what projects it, and all else


def freeze_parts(model: Any, *, vision: bool, merger: bool, language: bool) -> None:
    """Switches gradients off for whole parts of a model.

    Args:
        model: of any family.
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
    is_frozen = {"vision": vision, "merger": merger, "language": language}
    parts = part_of_each(model)
    for parameter in model.parameters():
        parameter.requires_grad_(not is_frozen[parts[id(parameter)]])


def part_of_each(model: nn.Module) -> dict[int, str]:
    """The part that each parameter belongs to, by the parameter's id."""
    parts = {id(parameter): "language" for parameter in model.parameters()}
    parts |= {id(parameter): "vision" for parameter in tower(model).parameters()}
    for merger in mergers(model):
        parts |= {id(parameter): "merger" for parameter in merger.parameters()}
    return parts
