"""Interface between a training step and Lightning's strategies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from tvg.model.policy import Policy


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

    def shard(self, trainer: Trainer, policies: Sequence[Policy]) -> None:
        """Distributes the weights over the ranks; called whenever Lightning sets up the model.

        Args:
            trainer: the trainer whose ranks share the weights.
            policies: the policy that is trained and, if there is one, its frozen reference.
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
