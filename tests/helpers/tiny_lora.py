"""Tiny policies with LoRA adapters, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from helpers.tiny_policy import Parts, make_parts

from tvg.model.adapters import LoRA
from tvg.model.loading import ModelSource
from tvg.model.policy import Policy

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(**changes: Any) -> LoRA:
    settings: dict[str, Any] = {
        "rank": 4,
        "alpha": 8,
        "dropout": 0.0,
        "target_modules": TARGETS,
        "components": ["language"],
        "full_components": [],
        "seed": 0,
    }
    return LoRA(**{**settings, **changes})


def make_lora_parts(
    checkpoint: Path,
    world: Path,
    *,
    dtype: str = "float32",
    freeze_vision: bool = False,
    freeze_merger: bool = False,
    freeze_language: bool = False,
    **changes: Any,
) -> Parts:
    """Like `make_parts`, but with LoRA adapters; `changes` are arguments of `LoRA`."""
    spec = ModelSource(
        path=str(checkpoint),
        create=None,
        dtype=dtype,
        attn_implementation="sdpa",
        freeze_vision=freeze_vision,
        freeze_merger=freeze_merger,
        freeze_language=freeze_language,
        gradient_checkpointing=False,
        adapter=lora(**changes),
    )
    policy = spec.load_policy(spec.load_processor())
    return replace(make_parts(checkpoint, world), policy=policy)


def adapt(policy: Policy, *, scale: float = 0.1) -> None:
    """Sets all B matrices to random values, as if they had been trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, scale, generator=generator)
