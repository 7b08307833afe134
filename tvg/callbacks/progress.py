"""Shows the progress of a run: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar

from tvg.training.lightning_internals import Tqdm
from tvg.training.step_output import StepOutput

_WINDOW = 20  # the displayed rates are measured over this many optimizer steps


class _Mark(NamedTuple):
    """Work done so far, counted from the start of training in this process."""

    time_s: float
    step: int
    num_prompts: float


def format_seconds(seconds: float) -> str:
    """Formats seconds as `1:02:03`, or as `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _total_steps(trainer: pl.Trainer, pl_module: pl.LightningModule) -> int | None:
    """Returns the number of optimizer steps of the entire run; None if it is unknown."""
    if not pl_module.automatic_optimization and trainer.max_steps > 0:
        return trainer.max_steps  # Lightning's estimate assumes one step per batch
    estimate = trainer.estimated_stepping_batches
    return int(estimate) if estimate != float("inf") else None


class Progress(TQDMProgressBar):
    """Shows one bar over all optimizer steps of the run, with reward, loss, rate and time left.

    If the output is not a terminal, the callback prints one line every n steps and one line per
    validation instead.

    Args:
        metrics: displayed name -> logged metric; metrics that are not logged are left out.
        every_n_steps: optimizer steps between two printed lines, at least 1.
        style: "bar", "lines", or "auto": a bar on a terminal, otherwise lines.
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(
        self,
        *,
        metrics: dict[str, str],
        every_n_steps: int,
        style: Literal["auto", "bar", "lines"],
    ) -> None:
        super().__init__(refresh_rate=1)
        if every_n_steps < 1:
            raise ValueError(f"progress.every_n_steps must be at least 1: got {every_n_steps}")
        if style not in ("auto", "bar", "lines"):
            raise ValueError(f"progress.style must be auto, bar or lines: got {style!r}")
        self.metrics = metrics
        self.every_n_steps = every_n_steps
        is_bar = style == "bar" or (style == "auto" and sys.stdout.isatty())
        self.has_lines = not is_bar
        self._total: int | None = None
        self._start_step = 0
        self._marks: deque[_Mark] = deque(maxlen=_WINDOW + 1)
        self._start_s = self._validation_start_s = 0.0

    @property
    def is_enabled(self) -> bool:
        """True if Lightning's bars are drawn."""
        return self._enabled and not self.has_lines

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        if not self.has_lines:
            super().print(*args, sep=sep, **kwargs)
        elif self._enabled:  # only on rank zero
            print(*args, sep=sep, flush=True)

    def init_train_tqdm(self) -> Tqdm:
        return Tqdm(
            desc="Training",
            total=self._total,
            initial=self._start_step,
            position=0,
            disable=self.is_disabled,
            leave=True,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,  # the time left is based on the mean rate since the start
            bar_format=self.BAR_FORMAT,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start_s = time.perf_counter()
        self._start_step = trainer.global_step
        self._total = _total_steps(trainer, pl_module)
        self._marks.clear()
        self._marks.append(_Mark(0.0, self._start_step, 0.0))
        self.train_progress_bar = self.init_train_tqdm()
        if self.has_lines:
            self.print(f"training from step {self._start_step} to {self._total or 'unknown'}")

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Keeps the bar, which spans all epochs; Lightning's method would restart it."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step, last = trainer.global_step, self._marks[-1]
        taken = StepOutput.of(outputs)
        num_prompts = last.num_prompts + (taken.num_prompts if taken is not None else 0)
        mark = _Mark(time.perf_counter() - self._start_s, step, num_prompts)
        if step == last.step:  # gradients are still being accumulated
            self._marks[-1] = last._replace(num_prompts=num_prompts)
            return
        self._marks.append(mark)
        if self.has_lines:
            is_due = step // self.every_n_steps > last.step // self.every_n_steps
            if is_due or last.step == self._start_step or step == self._total:
                self.print(self._line(trainer, pl_module))
            return
        self.train_progress_bar.n = step
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.has_lines:
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def _rates(self) -> Iterator[tuple[str, str]]:
        if len(self._marks) < 2:  # no step is done yet, e.g. in the sanity check
            return
        first, last = self._marks[0], self._marks[-1]
        seconds, num_steps = max(last.time_s - first.time_s, 1e-9), last.step - first.step
        yield "s/step", f"{seconds / num_steps:.2f}"
        if last.num_prompts > first.num_prompts:
            # Estimated from the prompts of this rank.
            num_ranks = self.trainer.world_size
            yield "prompts/s", f"{num_ranks * (last.num_prompts - first.num_prompts) / seconds:.1f}"

    def get_metrics(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, str]:
        """Returns the requested metrics that are logged, and the rates."""
        shown = {name: f"{value:.4g}" for name, value in self._values(trainer)}
        return shown | dict(self._rates())

    def _values(self, trainer: pl.Trainer) -> Iterator[tuple[str, float]]:
        logged: Mapping[str, Any] = trainer.callback_metrics
        for name, key in self.metrics.items():
            # Lightning adds a suffix to metrics that are logged both per step and per epoch.
            for known in (f"{key}_step", key):
                if known in logged:
                    yield name, float(logged[known])
                    break

    def _line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        mark = self._marks[-1]
        parts = [f"step {mark.step}/{self._total or '?'}"]
        parts += [f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items()]
        done = mark.step - self._start_step
        if self._total:
            left = max(self._total - mark.step, 0)
            parts.append(f"ETA {format_seconds(mark.time_s / done * left)}")
        return "  ".join(parts)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation_start_s = time.perf_counter()
        super().on_validation_start(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not self.has_lines or trainer.sanity_checking:
            return
        logged = trainer.callback_metrics
        values = {k: float(v) for k, v in logged.items() if k.startswith("val/")}
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        seconds = time.perf_counter() - self._validation_start_s
        self.print(f"validation at step {trainer.global_step}  {metrics}  {seconds:.1f} s")
