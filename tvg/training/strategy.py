"""Adapters between a training step and Lightning's strategies, one per engine.

To support another strategy, write an adapter and add it to `_ADAPTERS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from tvg.training.ranks import is_true_on_all_ranks


class StepResult(NamedTuple):
    """The outcome of an optimizer step."""

    grad_norm: Tensor  # scalar, over all ranks, before clipping
    is_skipped: bool  # loss or gradients not finite on some rank: no weights changed


class StrategyAdapter(Protocol):
    """Interface of the gradients and optimizer steps of one kind of strategy."""

    def configure(self, trainer: Trainer, *, max_grad_norm: float | None) -> None:
        """Prepares the strategy; called before the optimizer exists.

        Args:
            trainer: the trainer whose strategy is prepared.
            max_grad_norm: gradients are clipped to this norm; None for no clipping.
        """

    def gradient_sync(self, trainer: Trainer, *, is_last: bool) -> AbstractContextManager[Any]:
        """Returns a context for the forward and backward pass of a micro-batch.

        Ranks synchronise their gradients once per step, in the last micro-batch.
        """

    def step(
        self,
        trainer: Trainer,
        optimizer: Optimizer,
        parameters: Iterable[nn.Parameter],
        *,
        loss: Tensor,
        max_grad_norm: float | None,
    ) -> StepResult:
        """Clips the gradients and steps the optimizer; skips the step if anything is not finite.

        Args:
            trainer: the trainer whose ranks decide together.
            optimizer: the optimizer as wrapped by Lightning.
            parameters: the policy's parameters.
            loss: loss of this rank's step, detached.
            max_grad_norm: as in `configure`.
        """


class TorchAdapter:
    """Adapter for a single device and DDP: every rank has all gradients."""

    def configure(self, trainer: Trainer, *, max_grad_norm: float | None) -> None:
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


class DeepSpeedAdapter:
    """Adapter for DeepSpeed, whose engine stores the gradients, clips them and skips steps."""

    def configure(self, trainer: Trainer, *, max_grad_norm: float | None) -> None:
        assert isinstance(trainer.strategy, DeepSpeedStrategy)
        assert isinstance(trainer.strategy.config, dict)
        trainer.strategy.config["gradient_clipping"] = max_grad_norm or 0.0

    def gradient_sync(self, trainer: Trainer, *, is_last: bool) -> AbstractContextManager[Any]:
        self._engine(trainer).set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def step(
        self,
        trainer: Trainer,
        optimizer: Optimizer,
        parameters: Iterable[nn.Parameter],
        *,
        loss: Tensor,
        max_grad_norm: float | None,
    ) -> StepResult:
        optimizer.step()
        engine = self._engine(trainer)
        norm = torch.as_tensor(engine.get_global_grad_norm())
        return StepResult(norm, not engine.was_step_applied())

    def _engine(self, trainer: Trainer) -> Any:
        """Returns DeepSpeed's engine, which Lightning stores as the strategy's model."""
        return trainer.strategy.model


_ADAPTERS: tuple[tuple[type, type[StrategyAdapter]], ...] = ((DeepSpeedStrategy, DeepSpeedAdapter),)


def adapter_of(trainer: Trainer) -> StrategyAdapter:
    """Returns the adapter of a trainer's strategy; `TorchAdapter` if none is registered."""
    for strategy, adapter in _ADAPTERS:
        if isinstance(trainer.strategy, strategy):
            return adapter()
    return TorchAdapter()
