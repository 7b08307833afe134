"""The memory that a forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def kept_bytes(forward: Callable[[], Any], model: torch.nn.Module) -> int:
    """Returns the bytes that a forward pass keeps for the backward pass, except weights."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    sizes, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # keeps addresses from being reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(sizes.values())
