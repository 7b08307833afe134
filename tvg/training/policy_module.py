"""Base class of supervised and RL training: optimizer steps and validation."""

from __future__ import annotations

import hashlib
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tvg.data.split_batches import SplitBatch
from tvg.model.policy import Policy
from tvg.rollout.engine import RolloutEngine
from tvg.task.predictions import Prediction
from tvg.task.protocol import Task
from tvg.training.evaluation import predict_batch
from tvg.training.nonfinite import Describe, SkippedSteps
from tvg.training.out_of_memory import naming_stage, retried
from tvg.training.parameter_groups import parameter_groups
from tvg.training.preflight import merges_with_prefill
from tvg.training.ranks import gather_objects, mean_over_ranks
from tvg.training.run_length import estimated_batches
from tvg.training.stages import StageClock
from tvg.training.step_output import StepOutput
from tvg.training.strategy import adapter_of
from tvg.training.trained_state import TrainedStateModule, fingerprint
from tvg.types import LossOutput, PromptBatch

log = logging.getLogger(__name__)

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LambdaLR]
T = TypeVar("T")


class PolicyModule(TrainedStateModule):
    """Trains a policy and validates it.

    A batch is usually one optimizer step on this rank. It is split into micro-batches of
    `micro_batch_size` prompts, and every loss is divided by the denominator of the entire step.
    The split therefore changes memory use but not the gradient. This requires manual optimisation.

    Args:
        policy: trained in place.
        tokenizer: tokenizer of the policy.
        task: parses and scores completions.
        rollout: the sampler; validation uses greedy decoding.
        micro_batch_size: prompts per forward/backward pass.
        optimizer: builds the optimizer from parameter groups.
        schedule: builds the learning-rate schedule from the optimizer and the number of steps.
        max_grad_norm: gradients are clipped to this norm; None for no clipping.
        max_skipped_steps: training stops after this many consecutive steps with a non-finite loss
            or gradient. These steps leave weights and optimizer state unchanged.
        component_lr: separate learning rates for "vision", "merger", "language" and "adapter";
            None: the optimizer's rate.
        seed: seed of all random draws, which also depend on the step and the rank.

    Raises:
        ValueError: micro_batch_size < 1, or a learning rate for a part that is missing or frozen.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        tokenizer: Any,
        task: Task,
        rollout: RolloutEngine,
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
        self.rollout = rollout
        self._is_rollout_bound = False
        self.micro_batch_size = micro_batch_size
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.skipped_steps = SkippedSteps(max_skipped_steps)
        parameter_groups(policy.model, component_lr)  # fails before the slow start-up
        self.component_lr = component_lr
        self.seed = seed
        self.val_predictions: list[Prediction] = []
        # Models without weights get it when the strategy has distributed and loaded them.
        self.initial_fingerprint = "" if policy.weights is not None else fingerprint(policy)
        self.stages = StageClock()
        self.retry_on_oom = False  # train.retry_on_oom

    def setup(self, stage: str) -> None:
        if not self._is_rollout_bound:  # a fit may be followed by a validation
            self.rollout.setup(policy=self.policy, tokenizer=self.tokenizer)
            self._is_rollout_bound = True

    def configure_model(self) -> None:
        """Lets the strategy distribute the weights over the ranks, before the optimizer exists."""
        adapter_of(self.trainer).shard(self.trainer, self.policies())
        if not self.initial_fingerprint:
            self.initial_fingerprint = fingerprint(self.policy)

    def policies(self) -> list[Policy]:
        """Returns the models that the ranks may share: the policy and its reference, if any."""
        return [self.policy]

    # -- a step ---------------------------------------------------------------------------------

    @abstractmethod
    def step(self, batch: PromptBatch, *, is_last_batch: bool) -> StepOutput:
        """Computes the training step of a batch, usually with one optimizer step.

        Args:
            batch: prompts of this rank.
            is_last_batch: the batch is the last of its epoch.
        """

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        is_last = self.trainer.is_last_batch or batch_idx + 1 >= self.trainer.num_training_batches
        output = self.step(batch, is_last_batch=is_last)
        self._log_step(output)
        return output.for_lightning()

    def _log_step(self, output: StepOutput) -> None:
        """Logs the metrics of a step, reduced over ranks."""
        for metrics, reduce in ((output.metrics, "mean"), (output.max_metrics, "max")):
            for name, value in metrics.items():
                self.log(
                    f"train/{name}",
                    value,
                    prog_bar=name in output.shown,
                    sync_dist=self.trainer.world_size > 1,
                    reduce_fx=reduce,
                    batch_size=1,
                )

    # -- optimisation ---------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        # The model is loaded in eval mode, in which transformers skips gradient checkpointing.
        self.policy.train()
        prefill, completion = self.task.prefill, self.task.typical_target()
        if not prefill or completion is None:
            return
        if merges_with_prefill(self.tokenizer, prefill, completion):
            log.warning(
                "prompt.prefill: this tokenizer merges the end of %r and the start of an answer, "
                "%r, into one token, but tvg tokenises them separately: end the prefill with a "
                "line break",
                prefill,
                completion[:20],
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        adapter_of(self.trainer).configure(self.trainer, max_grad_norm=self.max_grad_norm)
        optimizer = self.make_optimizer(parameter_groups(self.policy.model, self.component_lr))
        num_steps = self.num_optimizer_steps()
        if math.isinf(num_steps):
            raise ValueError(
                "trainer.max_steps: the learning-rate schedule needs a number of steps: in "
                "addition to trainer.max_time, set trainer.max_steps or trainer.max_epochs"
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
        self, micro_batches: Sequence[T], loss_of: Callable[[T], LossOutput]
    ) -> dict[str, Tensor]:
        """Back-propagates the micro-batches of a step; returns the sums of loss and metrics."""
        totals: dict[str, Tensor] = {}
        adapter = adapter_of(self.trainer)
        # If a rank may repeat the step, the others must not wait for its gradients meanwhile.
        num_synced = 0 if self._syncs_later else len(micro_batches)
        for number, micro_batch in enumerate(micro_batches, start=1):
            with adapter.gradient_sync(self.trainer, is_last=number == num_synced):
                with self.stage("policy"):
                    output = loss_of(micro_batch)
                with self.stage("backward"):
                    self.manual_backward(output.loss)
            for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
        return totals

    def backward_step(
        self, micro_batches: Callable[[], Sequence[T]], loss_of: Callable[[T], LossOutput]
    ) -> dict[str, Tensor]:
        """Back-propagates a step; returns the sums of loss and metrics.

        With `retry_on_oom`, a step that runs out of memory is repeated in smaller micro-batches.

        Args:
            micro_batches: returns the micro-batches of the step at the current sizes of the passes.
            loss_of: computes the loss of a micro-batch.
        """
        totals = retried(self, lambda: self.backward_micro_batches(micro_batches(), loss_of))
        if self._syncs_later:
            with adapter_of(self.trainer).gradient_sync(self.trainer, is_last=True):
                trained = (p for p in self.policy.parameters() if p.requires_grad)
                self.manual_backward(torch.stack([(p * 0).sum().float() for p in trained]).sum())
        return totals

    @property
    def _syncs_later(self) -> bool:
        """Whether gradients are synchronised only when all ranks have computed theirs."""
        return self.retry_on_oom and self.trainer.world_size > 1

    def shrink_passes(self) -> str | None:
        """Halves the prompts per pass; returns the key with its value, or None if it is 1."""
        if self.micro_batch_size == 1:
            return None
        self.micro_batch_size //= 2
        return f"objective.micro_batch_size={self.micro_batch_size}"

    def discard_gradients(self) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage of the step; an out-of-memory error names it."""
        named = naming_stage(name, rank=self.global_rank, step=self.global_step)
        with named, self.stages(name, self.device):
            yield

    def step_optimizer(self, loss: Tensor, *, describe: Describe) -> dict[str, Tensor]:
        """Clips gradients, then steps the optimizer and the schedule; returns metrics to log.

        If the loss or a gradient is not finite on any rank, all ranks discard their gradients. The
        step still counts for `max_steps`, the schedule and all random draws.

        Args:
            loss: loss of this rank's step, detached.
            describe: returns rows about the step's examples, saved to a file if training stops.

        Raises:
            ValueError: too many consecutive steps had a non-finite loss or gradient.
        """
        with self.stage("optimizer"):
            return self._step_optimizer(loss, describe)

    def _step_optimizer(self, loss: Tensor, describe: Describe) -> dict[str, Tensor]:
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        rate, step = float(optimizer.param_groups[0]["lr"]), self.global_step
        taken = adapter_of(self.trainer).step(
            self.trainer,
            optimizer,
            self.policy.parameters(),
            loss=loss,
            max_grad_norm=self.max_grad_norm,
        )
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        file = f"skipped_step_{step + 1:08d}_rank_{self.global_rank}.json"
        self.skipped_steps.note(
            is_skipped=taken.is_skipped,
            step=step,
            loss=float(loss),
            grad_norm=float(taken.grad_norm),
            describe=describe,
            file=Path(self.trainer.default_root_dir) / file,
        )
        return {
            "grad_norm": taken.grad_norm,
            "learning_rate": torch.tensor(rate),
            "skipped_steps": torch.tensor(float(self.skipped_steps.num)),
        }

    def step_seed(self, stream: int = 0) -> int:
        """Returns a seed that depends only on the run seed, optimizer step, rank and stream."""
        text = f"{self.seed}/{self.global_step}/{self.global_rank}/{stream}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def mean_over_ranks(self, count: Tensor) -> Tensor:
        """Returns the mean over ranks of a per-rank count, as a float tensor."""
        return mean_over_ranks(self.trainer, count)

    # -- validation -----------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.val_predictions = []
        self.rollout.wake()
        self.rollout.sync_weights()

    def validation_step(self, batch: PromptBatch | SplitBatch, batch_idx: int) -> None:
        with naming_stage("validation", rank=self.global_rank, step=self.global_step):
            self.val_predictions += predict_batch(
                task=self.task,
                rollout=self.rollout.greedy(),
                prompts=batch,
                seed=self.seed,
                device=self.device,
            )

    def on_validation_epoch_end(self) -> None:
        self.rollout.sleep()
        predictions = self.val_predictions
        if self.trainer.world_size > 1:  # ranks repeat queries as padding; count each once
            gathered = gather_objects(self.trainer, predictions)
            predictions = list({p.qid: p for of_rank in gathered for p in of_rank}.values())
        if not predictions:
            log.warning("no clip of the validation split could be read: nothing was validated")
            return
        metrics = self.task.metrics(predictions)
        for name in (n for n in metrics if n.startswith(self.task.validation_metrics)):
            is_main = name == self.task.main_metric
            self.log(f"val/{name}", metrics[name], prog_bar=is_main, rank_zero_only=False)
