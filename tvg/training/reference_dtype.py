"""Keeps the reference's linear layers in half precision."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn


def to_half(model: Any, dtype: torch.dtype, *, shared: Collection[int]) -> None:
    """Converts the weights of a model's linear layers in place, except those of the head.

    Autocast converts the same weights before every product, so log-probabilities stay equal bit for
    bit. Embeddings, norms and the head keep their precision, in which they are used.

    Args:
        model: a video-language model.
        dtype: dtype in which autocast computes.
        shared: the `id()` of parameters that must not change.
    """
    for parameter in linear_weights(model):
        if id(parameter) not in shared:
            parameter.data = parameter.data.to(dtype)


def linear_weights(model: Any) -> Iterator[nn.Parameter]:
    """Yields weights and biases of all linear layers except the head."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            yield from module.parameters(recurse=False)
