"""The families of video-language models that can be trained, by the `model_type` of their config.

One object per family holds everything that differs; nothing else asks for a model's family.
A further family is one more file here, and its line in `FAMILIES`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig

from tvg.model.families.base import Family, VideoTokens, VisionSizes
from tvg.model.families.internvl import InternVL
from tvg.model.families.qwen2_5_vl import Qwen2_5VL
from tvg.model.families.qwen2_vl import Qwen2VL
from tvg.model.families.qwen3_vl import Qwen3VL
from tvg.model.folder_files import one_line

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Qwen2VL(),
    "qwen2_5_vl": Qwen2_5VL(),
    "qwen3_vl": Qwen3VL(),
    "internvl": InternVL(),
}


def family_of(config: Any) -> Family:
    """The family of a model's config."""
    return FAMILIES[config.model_type]


def tower(model: Any) -> nn.Module:
    """A model's vision tower."""
    return family_of(model.config).tower(model)


def mergers(model: Any) -> list[nn.Module]:
    """The modules that project the tower's features into the language model, inside it or not."""
    return family_of(model.config).mergers(model)


def read_config(folder: Path) -> Any:
    """The config of a checkpoint of a supported family.

    Raises:
        ValueError: it cannot be read, or its model type is not supported.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a file from elsewhere makes the library raise anything
        raise ValueError(
            f"model.path: {folder / 'config.json'} is no config that transformers can read: "
            f"{one_line(error)}"
        ) from error
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model.path: {folder} is of type {config.model_type!r}, supported: {sorted(FAMILIES)}"
        )
    return config


__all__ = [
    "FAMILIES",
    "Family",
    "VideoTokens",
    "VisionSizes",
    "family_of",
    "mergers",
    "read_config",
    "tower",
]
