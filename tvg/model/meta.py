"""A checkpoint's model without its weights: everything that can be counted is there."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig

from tvg.model.loading import MODEL_CLASSES, Checkpoint


def meta_model(checkpoint: Checkpoint) -> Any:
    """The model on the meta device, from `config.json` alone, frozen and adapted as configured.

    Raises:
        ValueError: no folder with a config.json, or of a type that is not supported.
    """
    folder = checkpoint.folder()
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type not in MODEL_CLASSES:
        raise ValueError(
            f"model.path: {folder} is of type {config.model_type!r}, "
            f"supported: {sorted(MODEL_CLASSES)}"
        )
    with torch.device("meta"):
        model = MODEL_CLASSES[config.model_type](config)
    with torch.device("meta"):
        checkpoint.choose_trained(model)
    return model
