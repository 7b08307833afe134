"""Low-rank adapters: small trained matrices added to frozen weights (LoRA, arXiv 2106.09685).

peft creates the adapter layers inside the model. The module tree stays the same, so code that reads
a policy also works with adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from tvg.core.limits import PARTS, frozen_adapter_problems, refuse
from tvg.model.freezing import component_of_each

Adapter = Callable[[Any], None]
ADAPTER_NAME = "default"  # peft's name for an unnamed adapter
ALL_LINEAR = "all-linear"
LORA = ".lora_"  # part of the name of every parameter that peft adds


def no_adapter(model: Any) -> None:
    """Adds no adapters: the weights that are not frozen are trained."""


class LoRA:
    """Adds adapters to linear layers, W x + alpha / rank * B A x, and freezes all other weights.

    B is initialised to 0, so the model's initial output is unchanged. All trained weights are
    float32 because small updates would be lost in bfloat16. Frozen weights keep their dtype.

    Args:
        rank: rank of B A.
        alpha: the scale of B A is alpha / rank.
        dropout: dropout on the input of A during training; reinforcement learning needs 0, because
            the sampler uses no dropout.
        target_modules: suffixes of the names of linear layers, or "all-linear".
        components: parts of the model that get adapters: any of "vision", "merger", "language".
        full_components: parts of the model that are trained in full, without adapters.
        seed: seed of A's initial values; the caller's random state is not changed.

    Raises:
        ValueError: a setting is invalid, or a part is in both lists; the message names the key.
    """

    def __init__(
        self,
        *,
        rank: int,
        alpha: float,
        dropout: float,
        target_modules: Sequence[str] | str,
        components: Sequence[str],
        full_components: Sequence[str],
        seed: int,
    ) -> None:
        if rank < 1:
            raise ValueError(f"model.adapter.rank: expected at least 1, got {rank}")
        if alpha <= 0:
            raise ValueError(f"model.adapter.alpha: expected more than 0, got {alpha}")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.adapter.dropout: expected 0 <= dropout < 1, got {dropout}")
        for key, chosen in (("components", components), ("full_components", full_components)):
            if isinstance(chosen, str) or not set(chosen) <= set(PARTS):
                raise ValueError(
                    f"model.adapter.{key}: expected a list of {', '.join(PARTS)}, got {chosen!r}"
                )
        if not components:
            raise ValueError("model.adapter.components: expected at least one component, got none")
        if both := sorted(set(components) & set(full_components)):
            raise ValueError(
                f"model.adapter.full_components: {both[0]} is in model.adapter.components, "
                "too: a part is trained either in full or through adapters"
            )
        if isinstance(target_modules, str) and target_modules != ALL_LINEAR:
            raise ValueError(
                "model.adapter.target_modules: expected a list of names, or all-linear, got "
                f"{target_modules!r}"
            )
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.target_modules = target_modules
        self.components = tuple(components)
        self.full_components = tuple(full_components)
        self.seed = seed

    def __call__(self, model: Any) -> None:
        """Adds the adapters to a model, after `freeze_parts`.

        Raises:
            ValueError: a selected part is frozen, or a name in `target_modules` matches no layer.
        """
        part_of = component_of_each(model)
        self._refuse_frozen({part_of[id(p)] for p in model.parameters() if p.requires_grad})
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a float works as well
            lora_dropout=self.dropout,
            target_modules=target_layers(model, self.target_modules, components=self.components),
            bias="none",
        )
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
            for parameter in model.parameters():
                part = part_of.get(id(parameter))  # None for an adapter
                parameter.requires_grad_(part is None or part in self.full_components)
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            torch.manual_seed(self.seed)
            for layer in _layers(model).values():  # peft initialised them in the weights' dtype
                layer.reset_lora_parameters(ADAPTER_NAME, True)

    def _refuse_frozen(self, trainable: set[str]) -> None:
        chosen = {"components": self.components, "full_components": self.full_components}
        refuse(frozen_adapter_problems(chosen, set(PARTS) - trainable))


def initial_adapters(shapes: Mapping[str, Sequence[int]], *, seed: int) -> dict[str, Tensor]:
    """Returns the values that `LoRA` gives to new adapters, for models without weights.

    Args:
        shapes: name -> shape of all adapter parameters, in the model's order.
        seed: `LoRA.seed`.
    """
    values = {name: torch.zeros(tuple(shape)) for name, shape in shapes.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, value in values.items():
            if f"{LORA}A." in name:  # as peft and nn.Linear initialise it; B stays 0
                nn.init.kaiming_uniform_(value, a=math.sqrt(5))
    return values


def target_layers(
    model: Any, wanted: Sequence[str] | str, *, components: Sequence[str]
) -> list[str]:
    """Returns the full names of the linear layers that are to be adapted.

    Args:
        model: a model without adapters.
        wanted: suffixes of names, such as "q_proj" or "mlp.0"; or "all-linear".
        components: the parts of the model to search.

    Raises:
        ValueError: a suffix matches no layer, or only the head or the embeddings.
    """
    part_of = component_of_each(model)
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and part_of[id(module.weight)] in components
    ]
    if isinstance(wanted, str):
        return linear
    ends = {name: next((end for end in wanted if _ends_so(name, end)), None) for name in linear}
    for end in wanted:
        if end in ends.values():
            continue
        words = (head, model.get_input_embeddings())
        if any(_ends_so(name, end) for name, module in model.named_modules() if module in words):
            raise ValueError(
                f"model.adapter.target_modules: {end!r} cannot be adapted: scoring and sampling "
                "read the head and the embeddings as plain weights; leave it out"
            )
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(
            f"model.adapter.target_modules: no linear layer of model.adapter.components="
            f"[{','.join(components)}] is called {end!r}; expected any of {', '.join(known)}"
        )
    return [name for name, end in ends.items() if end is not None]


def _ends_so(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def has_adapters(model: nn.Module) -> bool:
    """Returns whether any layer of a model has an adapter."""
    return bool(_layers(model))


def _layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Returns the layers with adapters, by their full names."""
    return {n: module for n, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_ids(model: nn.Module) -> set[int]:
    """Returns the `id()` of every adapter parameter."""
    return {id(parameter) for name, parameter in model.named_parameters() if LORA in name}


def drop_adapters(model: nn.Module) -> None:
    """Removes the adapters in place and keeps the base weights, without copying them."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                setattr(parent, name, child.get_base_layer())


def merged_state(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Returns the state dict of the model with its adapters merged into the weights.

    W + alpha / rank * B A replaces W. The sum is rounded once, to the dtype of W. Merged tensors
    are computed one by one and stored in CPU memory. The other tensors are not copied, and the
    model is not changed.

    Args:
        model: a model with adapters.
        state: its state dict with complete tensors; None: the model's weights are not sharded.
    """
    layers = _layers(model)
    state = model.state_dict() if state is None else state
    merged = {}
    for name, value in state.items():
        if LORA in name:
            continue
        owner, _, rest = name.rpartition(".base_layer.")
        if rest == "weight" and owner in layers:
            a, b = (state[f"{owner}.lora_{k}.{ADAPTER_NAME}.weight"] for k in "AB")
            value = _merged(value, a, b, layers[owner].scaling[ADAPTER_NAME])
        merged[f"{owner}.{rest}" if owner in layers else name] = value
    return merged


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Returns W + scale * B A in W's dtype, on the CPU."""
    delta = (b @ a) * scale
    wide = torch.promote_types(weight.dtype, delta.dtype)
    return (weight.to(wide) + delta.to(wide)).to("cpu", weight.dtype)


def save_adapter(model: Any, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes the adapters to a folder that peft can load on top of the base model.

    Parts that are trained in full are included as peft's `modules_to_save`.

    Args:
        model: a model with adapters.
        folder: the folder to write.
        state: its state dict with complete tensors; None: the model's weights are not sharded.
    """
    whole = model.state_dict() if state is None else state
    folder.mkdir(parents=True, exist_ok=True)
    full = {
        name: module
        for name, module in model.named_modules()
        if LORA not in name and any(p.requires_grad for p in module.parameters(recurse=False))
    }
    config = copy(model.peft_config[ADAPTER_NAME])
    config.inference_mode = True
    config.base_model_name_or_path = model.name_or_path
    config.target_modules = sorted(_layers(model))  # peft's shortened list has no fixed order
    config.modules_to_save = list(full) or None
    saved = get_peft_model_state_dict(
        model, dict(whole), adapter_name=ADAPTER_NAME, save_embedding_layers=False
    )
    for name, module in full.items():
        saved |= {f"{name}.{key}": whole[f"{name}.{key}"] for key in module.state_dict()}
    tensors = {f"base_model.model.{name}": v.cpu().contiguous() for name, v in saved.items()}
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
