"""AdamW for bfloat16 weights without float32 masters. It needs the optional package torchao.

A bfloat16 number has 8 significant bits, so an update of 1e-6 to a weight of 1e-2 is lost if the
result is rounded to the nearest number. Stochastic rounding rounds up or down with probabilities
that make the expected result exact (arXiv 2010.06192).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torchao.optim import AdamW8bit


class StochasticAdamW8bit(AdamW8bit):
    """torchao's AdamW with 8-bit states and stochastic rounding of bfloat16 weights.

    States of large tensors are rounded to 8 bits in blocks of 256 (arXiv 2110.02861). Tensors of
    fewer than 4,096 numbers, or of a size that 256 does not divide, have states in the precision of
    their weight. Weights in float32 are not rounded.

    The random bits of a step are a function of `seed` and the number of steps taken. A resumed run
    therefore draws the same bits as an uninterrupted run, and all ranks draw the same bits, which
    keeps replicas of the weights equal. Other random generators are not affected.

    On GPUs, torchao compiles the update, so that it needs no temporary copies of the weights. On
    CPUs the update runs without compilation.

    Args:
        params: parameter groups.
        lr: learning rate.
        betas: decay rates of the first and second moment.
        weight_decay: decoupled weight decay.
        seed: seed of the rounding.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: Iterable[float],
        weight_decay: float,
        seed: int,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=tuple(betas),
            weight_decay=weight_decay,
            bf16_stochastic_round=True,
        )
        self.seed = seed

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps taken, also before a resume."""
        return max((int(state["step"]) for state in self.state.values()), default=0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the weights; see `torch.optim.Optimizer.step`."""
        devices = {p.device for group in self.param_groups for p in group["params"]}
        gpus = sorted(device.index for device in devices if device.type == "cuda")
        with torch.random.fork_rng(gpus), _compiled_on_gpus(is_on_gpu=bool(gpus)):
            torch.manual_seed(_seed(self.seed, self.num_steps))
            return super().step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the states; learning rates stay tensors, as torchao requires."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)


def _seed(seed: int, num_steps: int) -> int:
    """Returns the seed of a step. CPU generators read the low 32 bits only, so it is a hash."""
    digest = hashlib.sha256(f"{seed}/{num_steps}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _compiled_on_gpus(*, is_on_gpu: bool) -> AbstractContextManager[Any]:
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return nullcontext() if is_on_gpu else stance
