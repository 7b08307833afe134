"""A checkpoint's model without its weights: everything that can be counted is there."""

from __future__ import annotations

from typing import Any

import torch

from tvg.model.families import family_of, read_config
from tvg.model.loading import Checkpoint


def meta_model(checkpoint: Checkpoint) -> Any:
    """The model on the meta device, from `config.json` alone, frozen and adapted as configured.

    Raises:
        ValueError: no folder with a config.json, or of a type that is not supported.
    """
    folder = checkpoint.folder()
    config = read_config(folder)
    with torch.device("meta"):
        model = family_of(config).model_class(config)
    with torch.device("meta"):
        checkpoint.choose_trained(model)
    return model
