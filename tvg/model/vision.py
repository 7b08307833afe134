"""The vision tower in two parts: the trunk, which is often frozen, and the merger behind it.

What a frozen trunk makes of a clip never changes: it can be computed once for sampling, policy and
reference together, or read from a cache, while the merger is run (and trained) each time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

TRUNK, MERGER = "visual.", "visual.merger."


def encode_trunk(model: Any, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
    """Patches into features before the merger, in reading order: [patches, vision hidden size].

    Args:
        model: a `Qwen2_5_VLForConditionalGeneration`.
        pixel_values: [patches of all clips, channels * temporal_patch * patch**2].
        grid_thw: int64 [clips, 3] in patches.
    """
    visual = model.model.visual
    features: Tensor = visual(pixel_values.type(visual.dtype), grid_thw=grid_thw).last_hidden_state
    config = model.config.vision_config
    unit = config.spatial_merge_size**2
    order = window_order(
        grid_thw,
        spatial_merge=config.spatial_merge_size,
        window_tokens=config.window_size // config.spatial_merge_size // config.patch_size,
    )
    groups = features.view(len(order), unit, -1)
    return groups[torch.argsort(order)].flatten(0, 1)


def merge_features(model: Any, features: Tensor) -> Tensor:
    """Trunk features into tokens for the language model: [patches / merge**2, hidden size].

    The merger sees merge**2 patches at a time, each group for itself.
    """
    merger = model.model.visual.merger
    merged: Tensor = merger(features.to(next(merger.parameters()).dtype))
    return merged


def is_trunk_frozen(model: Any) -> bool:
    """Whether no parameter of the tower is trained but the merger's."""
    return not any(
        parameter.requires_grad
        for name, parameter in model.model.visual.named_parameters()
        if not name.startswith("merger.")
    )


def window_order(grid_thw: Tensor, *, spatial_merge: int, window_tokens: int) -> Tensor:
    """The order in which the tower's blocks see merged tokens: int64 [tokens].

    Qwen2.5-VL attends inside windows of `window_tokens` squared merged tokens of a frame: clip by
    clip and frame by frame, its windows are read row by row, and so are the tokens of a window.
    """
    orders, offset = [], 0
    for time, height, width in grid_thw.tolist():
        rows, columns = height // spatial_merge, width // spatial_merge
        t, y, x = torch.meshgrid(
            torch.arange(time), torch.arange(rows), torch.arange(columns), indexing="ij"
        )
        # Window row, window column, row inside, column inside, as digits of one number.
        digits = (t, y // window_tokens, x // window_tokens, y % window_tokens, x % window_tokens)
        bases = (time, rows, columns, window_tokens, window_tokens)
        place = torch.zeros_like(t)
        for digit, base in zip(digits, bases, strict=True):
            place = place * base + digit
        orders.append(torch.argsort(place.flatten()) + offset)
        offset += time * rows * columns
    return torch.cat(orders).to(grid_thw.device)


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
        if TRUNK in name and MERGER not in name:
            found = True
            with safe_open(file, framework="pt") as tensors:
                value = tensors.get_tensor(name)
            digest.update(
                f"{name.rpartition(TRUNK)[2]} {tuple(value.shape)} {value.dtype}".encode()
            )
            digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    if not found:
        raise ValueError(
            f"model.path: {folder}: expected safetensors files with a vision tower "
            f"(tensors named {TRUNK}*), found none"
        )
    return digest.hexdigest()


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Which file of a checkpoint holds which tensor."""
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            files.update(dict.fromkeys(tensors.keys(), path))
    return files
