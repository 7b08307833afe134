"""Builds a checkpoint's model without weights, to count parameters and read sizes."""

from __future__ import annotations

from typing import Any

import torch

from tvg.model.adapters import adapter_ids
from tvg.model.families import family_of, read_config
from tvg.model.loading import ModelSource
from tvg.training.reference_dtype import linear_weights


def meta_model(checkpoint: ModelSource) -> Any:
    """Builds the model on the meta device from `config.json`, frozen and adapted as configured.

    Raises:
        ValueError: there is no folder with a config.json, or its model type is not supported.
    """
    folder = checkpoint.folder()
    config = read_config(folder)
    with torch.device("meta"):
        model = family_of(config).model_class(config)
    with torch.device("meta"):
        checkpoint.choose_trained(model)
    return model


def wide_reference(model: Any) -> int:
    """Returns the number of trained weights that `objective.reference_dtype` does not convert."""
    narrow = {id(p) for p in linear_weights(model)} | adapter_ids(model)
    return sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in narrow)


def largest_trained(model: Any) -> int:
    """Returns the number of weights in the largest trained tensor."""
    return max((p.numel() for p in model.parameters() if p.requires_grad), default=0)
