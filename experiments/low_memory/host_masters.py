"""AdamW with float32 masters of bfloat16 weights, as ZeRO-Offload does it, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class MasterAdamW(torch.optim.AdamW):
    """Steps float32 copies of the weights, then rounds them to the weights.

    As in DeepSpeed, the gradients are those of the bfloat16 weights, converted to float32.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, betas: Iterable[float], **more: Any
    ) -> None:
        groups = list(params)
        self.pairs = [
            [(p, torch.nn.Parameter(p.detach().float())) for p in group["params"]]
            for group in groups
        ]
        masters = [
            {**group, "params": [master for _, master in pairs]}
            for group, pairs in zip(groups, self.pairs, strict=True)
        ]
        super().__init__(masters, lr=lr, betas=tuple(betas), fused=True, **more)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        pairs = [pair for group in self.pairs for pair in group]
        for weight, master in pairs:
            master.grad = None if weight.grad is None else weight.grad.float()
        found = super().step(closure)
        with torch.no_grad():
            for weight, master in pairs:
                weight.copy_(master)
        return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for weight, _ in (pair for group in self.pairs for pair in group):
            weight.grad = None
