"""Adapters between a training step and Lightning's strategies, one per engine.

To support another strategy, write an adapter (`StrategyAdapter`) and add it to `_ADAPTERS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from tvg.model.policy import Policy
from tvg.training.fsdp2 import FSDP2Adapter, FSDP2Strategy
from tvg.training.ranks import is_true_on_all_ranks
from tvg.training.strategy_adapter import StepResult, StrategyAdapter
from tvg.training.zero import DeepSpeedAdapter


class TorchAdapter:
    """Adapter for a single device and DDP: every rank has all gradients."""

    def configure(self, trainer: Trainer, *, max_grad_norm: float | None) -> None:
        pass

    def shard(self, trainer: Trainer, policies: Sequence[Policy]) -> None:
        pass

    def gradient_sync(self, trainer: Trainer, *, is_last: bool) -> AbstractContextManager[Any]:
        block = getattr(trainer.strategy, "block_backward_sync", None)
        return nullcontext() if is_last or block is None else block()

    def step(
        self,
        trainer: Trainer,
        optimizer: Optimizer,
        parameters: Iterable[nn.Parameter],
        *,
        loss: Tensor,
        max_grad_norm: float | None,
    ) -> StepResult:
        trained = [p for p in parameters if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, max_grad_norm or float("inf"))
        is_finite = bool(norm.isfinite() & loss.isfinite())
        is_skipped = not is_true_on_all_ranks(trainer, is_finite)
        if is_skipped:  # without gradients, a step changes neither weights nor moments
            optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        return StepResult(norm, is_skipped)


_ADAPTERS: tuple[tuple[type, type[StrategyAdapter]], ...] = (
    (DeepSpeedStrategy, DeepSpeedAdapter),
    (FSDP2Strategy, FSDP2Adapter),
)


def adapter_of(trainer: Trainer) -> StrategyAdapter:
    """Returns the adapter of a trainer's strategy; `TorchAdapter` if none is registered."""
    for strategy, adapter in _ADAPTERS:
        if isinstance(trainer.strategy, strategy):
            return adapter()
    return TorchAdapter()
