"""Reads tensors of a checkpoint one by one, whole or in part, for models built without weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tvg.model.adapters import LORA, initial_adapters

# Beginnings of tensor names that differ between versions of transformers, e.g.
# "model.layers.0.mlp.up_proj.weight" and "model.language_model.layers.0.mlp.up_proj.weight".
_WRAPPERS = ("model", "language_model")


class WeightReader:
    """Reads the weights that a model without weights should have.

    The files are memory-mapped: a rank reads only the rows that it asks for.

    Args:
        files: the safetensors files of the checkpoint.
        model: the model on the meta device, with its adapters, if any.
        adapter_seed: seed of the adapters' initial values.

    Raises:
        ValueError: a tensor of the model is in no file, or its shape differs.
    """

    def __init__(self, files: list[Path], model: nn.Module, *, adapter_seed: int) -> None:
        self._files = files
        self._adapter_seed = adapter_seed
        held = self._places
        shapes = {
            name: tuple(parameter.shape)
            for name, parameter in model.named_parameters()
            if LORA not in name
        }
        missing = sorted(name for name in shapes if _short(name) not in held)
        if missing:
            raise ValueError(
                f"model.path: the weights in {files[0].parent} lack {len(missing)} of the model's "
                f"tensors, e.g. {missing[0]}"
            )
        for name, shape in shapes.items():
            found = self._shape(name)
            if found != shape:
                raise ValueError(
                    f"model.path: {files[0].parent}: {name} has the shape {found} in the weights, "
                    f"but {shape} in the model"
                )
        self._adapters = {
            name: tuple(parameter.shape)
            for name, parameter in model.named_parameters()
            if LORA in name
        }

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Returns rows of a tensor: [stop - start, ...], in the dtype of the file.

        Args:
            name: the tensor's name in the state dict of the model.
            start: first row.
            stop: last row + 1.
        """
        if name in self._adapters:
            return self._initial[name][start:stop]
        path, key = self._places[_short(name)]
        with safe_open(path, framework="pt") as file:
            part: Tensor = file.get_slice(key)[start:stop]
        return part

    @cached_property
    def _places(self) -> Mapping[str, tuple[Path, str]]:
        places: dict[str, tuple[Path, str]] = {}
        for path in self._files:
            with safe_open(path, framework="pt") as file:
                places.update({_short(key): (path, key) for key in file.keys()})  # noqa: SIM118
        return places

    @cached_property
    def _initial(self) -> dict[str, Tensor]:
        return initial_adapters(self._adapters, seed=self._adapter_seed)

    def _shape(self, name: str) -> tuple[int, ...]:
        path, key = self._places[_short(name)]
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(key).get_shape())


def _short(name: str) -> str:
    """Returns a name without the parts that depend on the version of transformers or on peft."""
    parts = name.replace(".base_layer.", ".").split(".")
    while parts[0] in _WRAPPERS:
        parts = parts[1:]
    return ".".join(parts)


def shard_rows(num_rows: int, *, rank: int, num_ranks: int) -> range:
    """Returns the rows of a tensor that a rank stores, as `fully_shard` distributes them."""
    size = math.ceil(num_rows / num_ranks)
    return range(min(rank * size, num_rows), min((rank + 1) * size, num_rows))


def empty_model(model_class: Any, config: Any, *, dtype: torch.dtype, attention: str) -> Any:
    """Builds a model whose parameters are on the meta device; its buffers are real.

    Args:
        model_class: the transformers class of the model.
        config: its config.
        dtype: dtype of the parameters.
        attention: the attention implementation.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForImageTextToText

    with init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation=attention
        )
    assert isinstance(model, model_class), type(model)
    model.tie_weights()
    return model.eval()
