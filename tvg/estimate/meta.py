"""Builds a checkpoint's model without weights, to count parameters and read sizes."""

from __future__ import annotations

from typing import Any

import torch

from tvg.model.families import family_of, read_config
from tvg.model.loading import ModelSource


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
