"""Optimizers that are missing in torch, and AdamW with a default that depends on the device."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch.optim import AdamW, Optimizer

from tvg.core.limits import eight_bit_problems, refuse


def adamw(
    params: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    fused: bool | None = None,
) -> AdamW:
    """Returns torch's AdamW.

    Args:
        params: parameter groups, on the device of the training.
        lr: learning rate.
        betas: decay rates of the two moments.
        weight_decay: decoupled weight decay.
        fused: update all weights in one kernel, without a temporary copy; None: on GPUs only.
    """
    if fused is None:
        fused = all(p.device.type == "cuda" for group in params for p in group["params"]) or None
    return AdamW(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)


def adamw_8bit(
    params: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], weight_decay: float
) -> Optimizer:
    """Returns AdamW with states rounded to 8 bits in blocks of 256 (arXiv 2110.02861).

    Tensors of fewer than 4,096 numbers keep float32 states, as the paper's authors recommend.

    Raises:
        ValueError: the optional package bitsandbytes is not installed.
    """
    refuse(eight_bit_problems())
    made: Optimizer = import_module("bitsandbytes.optim").AdamW8bit(
        params, lr=lr, betas=tuple(betas), weight_decay=weight_decay, min_8bit_size=4096
    )
    return made
