"""Logs the speed of a run: seconds, prompts and tokens of each optimizer step."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from tvg.training.step_output import StepOutput


class Throughput(Callback):
    """Logs `perf/*` metrics at the same step as the step's other metrics.

    - `perf/step_s`: seconds per optimizer step, including all its micro-batches and data loading.
    - `perf/data_wait_s`: the part of `step_s` between two batches: loading, moving and logging. It
      is omitted at the first step, and after a validation or a checkpoint, whose time cannot be
      separated from the wait. `step_s` then contains neither.
    - `perf/prompts_per_s` and `perf/tokens_per_s` (completion tokens): summed over ranks.
    - `perf/STAGE_s`: seconds of each stage that the step measures, such as vision, sampling,
      reward, reference, policy (forward), backward and optimizer.
    - `perf/mfu`: the step's necessary operations as a share of the device's peak. It is logged if
      `peak_tflops` is given and the step counts its operations.
    - `perf/gpu_memory_gib`: peak memory allocated by torch since the start, on a GPU.

    Args:
        peak_tflops: peak of one device, in 1e12 floating-point operations per second, at the
            training precision (989 for an H100 or H200 in bfloat16); None: no MFU.
    """

    def __init__(self, *, peak_tflops: float | None) -> None:
        super().__init__()
        if peak_tflops is not None and not peak_tflops > 0:
            raise ValueError(
                "callbacks.throughput.peak_tflops: expected more than 0, or null, "
                f"got {peak_tflops}"
            )
        self.peak_tflops = peak_tflops
        self._start_step()
        self._last_step = 0
        self._batch_start_s = 0.0
        self._batch_end_s: float | None = None  # None: no batch, or a validation or save since

    def _start_step(self) -> None:
        self._busy_s, self._wait_s = 0.0, 0.0
        self._is_wait_known = True
        self._stages_s: dict[str, float] = defaultdict(float)
        self._sums: dict[str, float] = defaultdict(float)  # name of the rate -> count
        self._num_flops: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        self._batch_end_s = None
        self._start_step()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batch_end_s = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._batch_end_s = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now_s = time.perf_counter()
        if self._batch_end_s is None:
            self._is_wait_known = False
        else:
            self._wait_s += now_s - self._batch_end_s
        self._batch_start_s = now_s

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._batch_end_s = time.perf_counter()
        self._busy_s += self._batch_end_s - self._batch_start_s
        if (taken := StepOutput.of(outputs)) is not None:
            self._add(taken)
        num_steps = trainer.global_step - self._last_step
        if num_steps < 1:  # no step yet: dynamic sampling is still collecting groups
            return
        self._last_step = trainer.global_step
        self._log(pl_module, num_steps)
        self._start_step()

    def _add(self, taken: StepOutput) -> None:
        self._sums["perf/prompts_per_s"] += taken.num_prompts
        self._sums["perf/tokens_per_s"] += taken.num_tokens
        if taken.num_flops is not None:
            self._num_flops = (self._num_flops or 0) + taken.num_flops
        for stage, seconds in taken.stage_s.items():
            self._stages_s[stage] += seconds

    def _log(self, pl_module: pl.LightningModule, num_steps: int) -> None:
        total_s = max(self._busy_s + self._wait_s, 1e-9)
        means = {"perf/step_s": total_s / num_steps}
        if self._is_wait_known:
            means["perf/data_wait_s"] = self._wait_s / num_steps
        means |= {f"perf/{stage}_s": s / num_steps for stage, s in self._stages_s.items()}
        if self._num_flops is not None and self.peak_tflops is not None:
            means["perf/mfu"] = self._num_flops / total_s / (self.peak_tflops * 1e12)
        sums = {name: number / total_s for name, number in self._sums.items()}
        # The module logs them, so that every logger gets them at the same step as train/*.
        pl_module.log_dict(means, on_step=True, on_epoch=False)
        pl_module.log_dict(sums, on_step=True, on_epoch=False, sync_dist=True, reduce_fx="sum")
        if pl_module.device.type == "cuda":
            peak_gib = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
            pl_module.log("perf/gpu_memory_gib", peak_gib, on_step=True, on_epoch=False)
