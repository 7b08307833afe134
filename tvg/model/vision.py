"""The vision tower in two parts: the trunk, which is often frozen, and the mergers after it.

What a frozen trunk makes of a clip never changes: it can be computed once for sampling, policy and
reference together, or read from a cache, while the mergers are run (and trained) each time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tvg.model.families import VideoTokens, family_of, mergers, tower

TRUNKS = ("visual.", "vision_tower.")
MERGERS = ("visual.merger.", "visual.deepstack_merger_list.")


def encode_trunk(model: Any, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
    """Patches into features before the mergers, in reading order: [patches, F].

    Args:
        model: of any family.
        pixel_values: [patches of all clips, channels * temporal_patch * patch**2].
        grid_thw: int64 [clips, 3] in patches.
    """
    return family_of(model.config).encode_trunk(model, pixel_values, grid_thw)


def merge_features(model: Any, features: Tensor) -> VideoTokens:
    """Trunk features into tokens for the language model: [patches / merge**2, hidden size].

    The mergers see merge**2 patches at a time, each group for itself.
    """
    return family_of(model.config).merge(model, features)


def is_trunk_frozen(model: Any) -> bool:
    """Whether no parameter of the tower is trained but the mergers'."""
    merging = {id(p) for merger in mergers(model) for p in merger.parameters()}
    return not any(
        parameter.requires_grad and id(parameter) not in merging
        for parameter in tower(model).parameters()
    )


def trunk_fingerprint(folder: Path) -> str:
    """A hash of all that decides the trunk's output: its weights, byte for byte, and its config.

    Read from the files of a checkpoint, without loading a model.

    Raises:
        ValueError: the folder holds no safetensors with a vision tower.
    """
    digest = hashlib.blake2b(digest_size=8)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    digest.update(json.dumps(config.get("vision_config"), sort_keys=True).encode())
    found = False
    for name, file in sorted(_tensor_files(folder).items()):
        trunk = next((trunk for trunk in TRUNKS if trunk in name), None)
        if trunk is not None and not any(merger in name for merger in MERGERS):
            found = True
            with safe_open(file, framework="pt") as tensors:
                value = tensors.get_tensor(name)
            digest.update(
                f"{name.rpartition(trunk)[2]} {tuple(value.shape)} {value.dtype}".encode()
            )
            digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    if not found:
        raise ValueError(
            f"model.path: {folder}: expected safetensors files with a vision tower "
            f"(tensors named {' or '.join(TRUNKS)}*), found none"
        )
    return digest.hexdigest()


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Which file of a checkpoint holds which tensor."""
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            files.update(dict.fromkeys(tensors.keys(), path))
    return files
