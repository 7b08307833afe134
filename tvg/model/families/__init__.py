"""The supported families of video-language models, by the `model_type` of their config.

One object per family implements everything that differs; no other code checks a model's family. To
add a family, add a file here and an entry in `FAMILIES`.
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
    """Returns the family of a model, given its config."""
    return FAMILIES[config.model_type]


def tower(model: Any) -> nn.Module:
    """Returns a model's vision tower."""
    return family_of(model.config).tower(model)


def mergers(model: Any) -> list[nn.Module]:
    """Returns the modules that project vision features into the language model.

    They may be inside or outside the tower.
    """
    return family_of(model.config).mergers(model)


def read_config(folder: Path) -> Any:
    """Reads the config of a checkpoint of a supported family.

    Raises:
        ValueError: the config cannot be read, or its model type is not supported.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # an untrusted file can make the library raise anything
        raise ValueError(
            f"model.path: {folder / 'config.json'} cannot be read by transformers: "
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
