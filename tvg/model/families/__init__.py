"""Registry of the supported model families, by the `model_type` of a checkpoint's config.

One object per family implements everything that differs between families. No other code checks the
family of a model. To add a family, add a file here and an entry in `FAMILIES` (docs/models.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tvg.model.families.base import Family, VideoTokens, VisionSizes
from tvg.model.families.internvl import InternVL
from tvg.model.families.qwen2_5_vl import Qwen2_5VL
from tvg.model.families.qwen2_vl import Qwen2VL
from tvg.model.families.qwen3_vl import Qwen3VL
from tvg.model.folder_files import one_line

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Qwen2VL(),
        Qwen2_5VL(),
        Qwen3VL(),
        InternVL(),
    )
}


def family_named(model_type: Any, where: str) -> Family:
    """Returns the family of a model type.

    Args:
        model_type: value from a checkpoint's untrusted config.json; may be of any Python type.
        where: beginning of the error message, e.g. "model.path: FOLDER".

    Raises:
        ValueError: the model type is not supported.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"{where} is of type {model_type!r}, supported: {sorted(FAMILIES)}")
    return FAMILIES[model_type]


def family_of(config: Any) -> Family:
    """Returns the family of a model, given its config.

    Raises:
        ValueError: the model type is not supported.
    """
    return family_named(config.model_type, f"a {type(config).__name__}")


def family_of_json(config: Mapping[str, Any], folder: Path) -> Family:
    """Returns the family of a checkpoint, given the content of its config.json.

    Raises:
        ValueError: the model type is not supported.
    """
    return family_named(config.get("model_type"), f"model.path: {folder}")


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
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # an untrusted file can make the library raise anything
        raise ValueError(
            f"model.path: {folder / 'config.json'} cannot be read by transformers: "
            f"{one_line(error)}"
        ) from error
    family_named(config.model_type, f"model.path: {folder}")
    return config


__all__ = [
    "FAMILIES",
    "Family",
    "VideoTokens",
    "VisionSizes",
    "family_named",
    "family_of",
    "family_of_json",
    "mergers",
    "read_config",
    "tower",
]
