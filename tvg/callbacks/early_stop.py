"""Stops a run whose reward has stopped rising."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tvg.callbacks.run_start import changed_settings

KEY = "callbacks.early_stop"
log = logging.getLogger(__name__)


class RewardPlateau(Callback):
    """Stops training if no window's mean has exceeded the best mean for `patience` steps.

    The metric is averaged over consecutive windows of `window` optimizer steps, because the reward
    of a single step is mostly noise. All ranks decide together, and checkpoints include the state.
    With `sample_filtering`, the training list may get harder from epoch to epoch, so set `patience`
    to several epochs.

    Args:
        metric: name of a metric that is logged at every step; larger is better.
        window: optimizer steps to average over, at least 1.
        patience: optimizer steps without a better window, at least `window`.
        min_delta: minimum improvement over the best window so far, at least 0.
        warmup_steps: optimizer steps during which training is never stopped, at least 0.

    Raises:
        ValueError: a setting is out of range, or the metric is not logged; the message names the
            config key.
    """

    def __init__(
        self, *, metric: str, window: int, patience: int, min_delta: float, warmup_steps: int
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("window", window, 1),
            ("patience", patience, window),
            ("min_delta", min_delta, 0),
            ("warmup_steps", warmup_steps, 0),
        ):
            if not value >= least:
                raise ValueError(f"{KEY}.{name}: expected at least {least}, got {value}")
        self.metric = metric
        self.window = window
        self.patience = patience
        self.min_delta = min_delta
        self.warmup_steps = warmup_steps
        self.best = -math.inf  # mean of the best window
        self.best_step = 0  # last step of the best window
        self.total = 0.0  # sum over the current, incomplete window
        self.num_steps = 0  # in the current window
        self.last_step = 0  # last step that was counted

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last_step = trainer.global_step
        if any(_is_reward_weight(key) for key in changed_settings(trainer)):
            log.info("%s: reward weights have changed, so the best mean is forgotten", KEY)
            self.best, self.best_step = -math.inf, trainer.global_step
            self.total, self.num_steps = 0.0, 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if step == self.last_step:  # gradients are still being accumulated
            return
        num_steps, self.last_step = step - self.last_step, step
        self.total += self._value(trainer) * num_steps  # one batch may have several updates
        self.num_steps += num_steps
        if self.num_steps < self.window:
            return
        mean, self.total, self.num_steps = self.total / self.num_steps, 0.0, 0
        is_flat = self._note(mean, step)
        if trainer.strategy.reduce_boolean_decision(is_flat, all=False):
            log.warning(
                "%s: %s has not risen by more than %g for %d steps (best mean of %d steps: %.4f, "
                "up to step %d): training stops at step %d",
                *(KEY, self.metric, self.min_delta, step - self.best_step),
                *(self.window, self.best, self.best_step, step),
            )
            trainer.should_stop = True

    def _value(self, trainer: pl.Trainer) -> float:
        logged = trainer.callback_metrics
        if self.metric not in logged:
            raise ValueError(
                f"{KEY}.metric: {self.metric} is not logged; logged metrics: "
                f"{', '.join(sorted(logged))}"
            )
        return float(logged[self.metric])

    def _note(self, mean: float, step: int) -> bool:
        """Records the mean of a full window; returns whether to stop training."""
        if mean > self.best + self.min_delta:
            self.best, self.best_step = mean, step
            return False
        return step >= self.warmup_steps and step - self.best_step >= self.patience

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "best_step", "total", "num_steps")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


def _is_reward_weight(key: str) -> bool:
    return key.startswith("reward.") and key.endswith(".weight")
