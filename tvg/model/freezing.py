"""Freezes parts of a video-language model: the vision trunk, the merger or the language model."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import nn

from tvg.core.limits import PARTS, frozen_model_problems, refuse
from tvg.model.families import mergers, tower

log = logging.getLogger(__name__)


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


def warn_of_repeated_casts(model: nn.Module) -> None:
    """Warns if autocast converts frozen weights of the language model again for every token.

    Autocast keeps converted weights only if they are trained. Call it with autocast enabled.
    """
    parts = component_of_each(model)
    if any(
        parts[id(p)] == "language"
        and p.ndim > 1
        and p.dtype == torch.float32
        and not p.requires_grad
        for p in model.parameters()
    ):
        _warn_once(
            "model.dtype: the language model has frozen float32 weights, which trainer.precision "
            "converts to half precision again for every sampled token: set model.dtype=bfloat16 "
            "(adapters stay in float32)"
        )


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)
