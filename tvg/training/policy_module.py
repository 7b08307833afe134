"""Base class of supervised and reinforcement training: optimizer steps and validation."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tvg.model.policy import Policy
from tvg.rollout.base import Rollout
from tvg.task.grounding import GroundingTask
from tvg.task.predictions import Prediction
from tvg.training.evaluation import predict_batch, score
from tvg.training.nonfinite import Describe, SkippedSteps
from tvg.training.parameter_groups import parameter_groups
from tvg.training.preflight import merges_with_prefill
from tvg.training.run_length import estimated_batches
from tvg.training.stages import StageClock
from tvg.training.trained_state import TrainedStateModule, fingerprint
from tvg.types import LossOutput, PromptBatch, Segment

log = logging.getLogger(__name__)

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LambdaLR]
Part = TypeVar("Part")


class PolicyModule(TrainedStateModule):
    """Trains a policy and validates it.

    Each batch is one optimizer step on this rank. It is split into micro-batches of
    `micro_batch_size` prompts, and every loss is divided by the denominator of the whole step.
    The split therefore changes memory use but not the gradient. This requires manual optimisation.

    Args:
        policy: trained in place.
        tokenizer: tokenizer of the policy.
        task: parses completions.
        eval_rollout: sampler used in validation.
        micro_batch_size: prompts per forward/backward pass.
        optimizer: builds the optimizer from parameter groups.
        schedule: builds the learning-rate schedule from the optimizer and the number of steps.
        max_grad_norm: gradients are clipped to this norm; None for no clipping.
        max_skipped_steps: training stops after this many consecutive steps with a non-finite loss
            or gradient. Such a step leaves weights and optimizer state unchanged.
        component_lr: separate learning rates for "vision", "merger", "language" and "adapter";
            None: the optimizer's.
        seed: every random draw is a function of this seed, the step and the rank.

    Raises:
        ValueError: micro_batch_size < 1, or a learning rate for a part that is missing or frozen.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        tokenizer: Any,
        task: GroundingTask,
        eval_rollout: Rollout,
        micro_batch_size: int,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        max_grad_norm: float | None,
        max_skipped_steps: int,
        component_lr: Mapping[str, float | None],
        seed: int,
    ) -> None:
        super().__init__()
        if micro_batch_size < 1:
            raise ValueError(
                f"objective.micro_batch_size: expected at least 1, got {micro_batch_size}"
            )
        self.automatic_optimization = False
        self.policy = policy
        self.tokenizer = tokenizer
        self.task = task
        self.eval_rollout = eval_rollout
        self.micro_batch_size = micro_batch_size
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.skipped_steps = SkippedSteps(max_skipped_steps)
        parameter_groups(policy.model, component_lr)  # fails before the slow start-up
        self.component_lr = component_lr
        self.seed = seed
        self.val_predictions: list[Prediction] = []
        self.initial_fingerprint = fingerprint(policy)
        self.stages = StageClock()

    # -- optimisation ---------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        # The model is loaded in eval mode, in which transformers skips gradient checkpointing.
        self.policy.train()
        prefill, answer = self.task.prefill, self.task.answer_format
        if not prefill or answer is None:
            return
        completion = self.task.target(Segment(0.0, 1.0))
        if merges_with_prefill(self.tokenizer, prefill, completion):
            log.warning(
                "prompt.prefill: %r and the start of an answer, %r, share a token in this "
                "tokenizer, but are tokenised apart: end the prefill with a line break",
                prefill,
                completion[:20],
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if isinstance(self.trainer.strategy, DeepSpeedStrategy):
            assert isinstance(self.trainer.strategy.config, dict)
            # DeepSpeed's engine owns the gradients, so only the engine can clip them.
            self.trainer.strategy.config["gradient_clipping"] = self.max_grad_norm or 0.0
        optimizer = self.make_optimizer(parameter_groups(self.policy.model, self.component_lr))
        num_steps = self.num_optimizer_steps()
        if math.isinf(num_steps):
            raise ValueError(
                "trainer.max_steps: the learning-rate schedule has to know the number of steps: "
                "set it (or trainer.max_epochs) beside trainer.max_time"
            )
        schedule = self.make_schedule(optimizer, int(num_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def num_optimizer_steps(self) -> int | float:
        """Returns the estimated number of optimizer steps of the run; infinite if unknown."""
        return estimated_batches(self.trainer)

    def micro_batches(self, num_prompts: int) -> list[range]:
        """Splits the prompts of a step into micro-batches."""
        size = self.micro_batch_size
        return [range(i, min(i + size, num_prompts)) for i in range(0, num_prompts, size)]

    def backward_micro_batches(
        self, parts: Sequence[Part], loss_of: Callable[[Part], LossOutput]
    ) -> dict[str, Tensor]:
        """Back-propagates a step part by part; returns the loss and metrics summed over parts."""
        totals: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            with self._gradient_sync(enabled=number == len(parts)):
                with self.stage("policy"):
                    output = loss_of(part)
                with self.stage("backward"):
                    self.manual_backward(output.loss)
            for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
        return totals

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Times a stage of the step."""
        return self.stages(name, self.device)

    def step_optimizer(self, loss: Tensor, *, describe: Describe) -> dict[str, Tensor]:
        """Clips gradients, then steps the optimizer and the schedule; returns metrics to log.

        If the loss or a gradient is not finite on any rank, all ranks discard their gradients. The
        step still counts (for `max_steps`, the schedule and all random draws).

        Args:
            loss: loss of this rank's step, detached.
            describe: returns rows about the step's examples, to be saved if training stops here.

        Raises:
            ValueError: too many consecutive steps were not finite.
        """
        with self.stage("optimizer"):
            return self._step_optimizer(loss, describe)

    def _step_optimizer(self, loss: Tensor, describe: Describe) -> dict[str, Tensor]:
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        rate, step = optimizer.param_groups[0]["lr"], self.global_step
        if isinstance(self.trainer.strategy, DeepSpeedStrategy):  # skips such steps itself
            optimizer.step()
            norm = torch.as_tensor(self._engine().get_global_grad_norm())
            is_skipped = not self._engine().was_step_applied()
        else:
            trained = [p for p in self.policy.parameters() if p.grad is not None]
            norm = nn.utils.clip_grad_norm_(trained, self.max_grad_norm or float("inf"))
            is_skipped = not self._on_all_ranks(bool(norm.isfinite() & loss.isfinite()))
            if is_skipped:  # without gradients, a step changes neither weights nor moments
                optimizer.zero_grad(set_to_none=True)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        file = f"skipped_step_{step + 1:08d}_rank_{self.global_rank}.json"
        self.skipped_steps.note(
            is_skipped=is_skipped,
            step=step,
            loss=float(loss),
            grad_norm=float(norm),
            describe=describe,
            file=Path(self.trainer.default_root_dir) / file,
        )
        return {
            "grad_norm": norm,
            "learning_rate": torch.tensor(rate),
            "skipped_steps": torch.tensor(float(self.skipped_steps.num)),
        }

    def _on_all_ranks(self, is_true: bool) -> bool:
        if self.trainer.world_size == 1:
            return is_true
        return self.trainer.strategy.reduce_boolean_decision(is_true, all=True)

    def step_seed(self, stream: int = 0) -> int:
        """Returns a seed that depends only on the run seed, optimizer step, rank and stream."""
        text = f"{self.seed}/{self.global_step}/{self.global_rank}/{stream}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def mean_over_ranks(self, count: Tensor) -> Tensor:
        """Returns the mean over ranks of a per-rank count, as a float tensor.

        Gradients are averaged over ranks. With this denominator, every token (or completion) has
        the same weight on every rank.
        """
        if self.trainer.world_size == 1:
            return count.float()
        gathered = self.all_gather(count.float())
        assert isinstance(gathered, Tensor)
        return gathered.mean()

    def log_step(
        self,
        metrics: Mapping[str, Tensor | float],
        *,
        show: tuple[str, ...] = (),
        reduce: Literal["mean", "max"] = "mean",
    ) -> None:
        """Logs this step's metrics, reduced over ranks; `show`: those for the progress bar, too."""
        for name, value in metrics.items():
            self.log(
                f"train/{name}",
                value,
                prog_bar=name in show,
                sync_dist=self.trainer.world_size > 1,
                reduce_fx=reduce,
                batch_size=1,
            )

    def _gradient_sync(self, *, enabled: bool) -> Any:
        """Synchronises the gradients of all ranks once per step, on its last micro-batch."""
        if isinstance(self.trainer.strategy, DeepSpeedStrategy):
            self._engine().set_gradient_accumulation_boundary(enabled)
            return nullcontext()
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if enabled or block is None else block()

    def _engine(self) -> Any:
        """Returns DeepSpeed's engine, which Lightning stores as the strategy's model."""
        return self.trainer.strategy.model

    # -- validation -----------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.val_predictions = []

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.val_predictions += predict_batch(
            policy=self.policy,
            tokenizer=self.tokenizer,
            task=self.task,
            rollout=self.eval_rollout,
            prompts=batch,
            seed=self.seed,
        )

    def on_validation_epoch_end(self) -> None:
        predictions = self._gather_predictions()
        metrics = score(predictions)
        names = [n for n in metrics if n.startswith(("miou", "r1_", "parse_rate", "exact_format"))]
        for name in names:
            self.log(f"val/{name}", metrics[name], prog_bar=name == "miou", rank_zero_only=False)

    def _gather_predictions(self) -> list[Prediction]:
        """Gathers all ranks' predictions; queries duplicated by sampler padding count once."""
        if self.trainer.world_size == 1:
            return self.val_predictions
        gathered: list[list[Prediction]] = [[] for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(gathered, self.val_predictions)
        return list({p.qid: p for part in gathered for p in part}.values())
