"""DeepSpeed's ZeRO stages 1 to 3: strategy, adapter, and weights that stage 3 partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy as LightningDeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from tvg.model.policy import Policy
from tvg.training.folder_checkpoint import whole_folder_of_ranks
from tvg.training.strategy_adapter import StepResult


class DeepSpeedStrategy(LightningDeepSpeedStrategy):
    """Lightning's strategy, except that checkpoints are written atomically.

    The arguments are those of `lightning.pytorch.strategies.DeepSpeedStrategy`.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        with whole_folder_of_ranks(self, filepath) as folder:
            super().save_checkpoint(checkpoint, folder, storage_options)


class Partitioned:
    """Weights partitioned by ZeRO-3; see `tvg.model.sharding.Sharding`.

    Args:
        engine: returns DeepSpeed's engine.
    """

    def __init__(self, engine: Callable[[], Any]) -> None:
        self._engine = engine
        self._gathered: AbstractContextManager[Any] | None = None

    def gather(self, module: nn.Module) -> None:
        import deepspeed

        # DeepSpeed reads these two members of the engine. The engine's own parameters include those
        # of the reference, which are not needed for sampling.
        part = SimpleNamespace(parameters=module.parameters, optimizer=self._engine().optimizer)
        self._gathered = deepspeed.zero.unwrap_model_for_generation(part)
        self._gathered.__enter__()

    def release(self, module: nn.Module) -> None:
        assert self._gathered is not None
        self._gathered.__exit__(None, None, None)
        self._gathered = None

    def full_state(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        import deepspeed

        parameters = dict(module.named_parameters(remove_duplicate=False))
        for name, value in sorted(module.state_dict().items()):
            parameter = parameters.get(name)
            with deepspeed.zero.GatheredParameters([] if parameter is None else [parameter]):
                yield name, value if parameter is None else parameter.data


class DeepSpeedAdapter:
    """Adapter for DeepSpeed, whose engine stores the gradients, clips them and skips steps."""

    def configure(self, trainer: Trainer, *, max_grad_norm: float | None) -> None:
        assert isinstance(trainer.strategy, LightningDeepSpeedStrategy)
        assert isinstance(trainer.strategy.config, dict)
        trainer.strategy.config["gradient_clipping"] = max_grad_norm or 0.0

    def shard(self, trainer: Trainer, policies: Sequence[Policy]) -> None:
        assert isinstance(trainer.strategy, LightningDeepSpeedStrategy)
        if trainer.strategy.zero_stage_3:
            for policy in policies:
                policy.sharding = Partitioned(lambda: self._engine(trainer))

    def gradient_sync(self, trainer: Trainer, *, is_last: bool) -> AbstractContextManager[Any]:
        assert isinstance(trainer.strategy, LightningDeepSpeedStrategy)
        engine = self._engine(trainer)
        engine.set_gradient_accumulation_boundary(is_last)
        if trainer.strategy.zero_stage_3:
            # ZeRO-3 adds a gradient to the earlier ones only if a new forward pass was announced.
            # The engine's own forward pass contains the whole step, so it announces only one.
            engine.optimizer.clear_backward_seen_flag()
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
