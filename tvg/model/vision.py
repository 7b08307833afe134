"""The vision tower in two parts: the trunk, which is often frozen, and the mergers after it.

The features that a frozen trunk computes for a clip never change. They can be computed once for
sampling, policy and reference, or read from a cache. The mergers run in every pass.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tvg.model.families import VideoTokens, family_of, family_of_json, mergers, tower


def encode_trunk(model: Any, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
    """Encodes patches to features before the mergers, in the patches' order: [patches, F].

    Args:
        model: a model of any family.
        pixel_values: [patches of all clips, channels * temporal_patch * patch**2].
        grid_thw: int64 [clips, 3] in patches.
    """
    return family_of(model.config).encode_trunk(model, pixel_values, grid_thw)


def merge_features(model: Any, features: Tensor) -> VideoTokens:
    """Merges trunk features to tokens for the language model: [patches / merge**2, hidden size].

    The mergers process each group of merge**2 patches independently.
    """
    return family_of(model.config).merge(model, features)


def is_trunk_frozen(model: Any) -> bool:
    """Returns whether all parameters of the tower are frozen, except the mergers'."""
    merging = {id(p) for merger in mergers(model) for p in merger.parameters()}
    return not any(
        parameter.requires_grad and id(parameter) not in merging
        for parameter in tower(model).parameters()
    )


def trunk_fingerprint(folder: Path) -> str:
    """Returns a hash of everything that determines the trunk's output: its weights and config.

    The checkpoint's files are read without loading a model.

    Raises:
        ValueError: the folder contains no safetensors with a vision tower, or its model type is
            not supported.
    """
    digest = hashlib.blake2b(digest_size=8)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = family_of_json(config, folder)
    digest.update(json.dumps(config.get("vision_config"), sort_keys=True).encode())
    found = False
    for name, file in sorted(_tensor_files(folder).items()):
        is_merger = any(prefix in name for prefix in family.merger_prefixes)
        if family.trunk_prefix in name and not is_merger:
            found = True
            with safe_open(file, framework="pt") as tensors:
                value = tensors.get_tensor(name)
            tensor = name.rpartition(family.trunk_prefix)[2]
            digest.update(f"{tensor} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    if not found:
        raise ValueError(
            f"model.path: {folder}: expected safetensors files with a vision tower "
            f"(tensors named {family.trunk_prefix}*), found none"
        )
    return digest.hexdigest()


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Returns the file of each tensor of a checkpoint, by the tensor's name."""
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            files.update(dict.fromkeys(tensors.keys(), path))
    return files
