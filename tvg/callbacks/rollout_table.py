"""Saves sampled completions with their rewards as JSON lines, and shows them as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tvg.core.text_files import write_text
from tvg.tracking.sinks import log_table
from tvg.tracking.steady import reported_only
from tvg.training.step_output import StepOutput

FILE_NAME = "rollouts.jsonl"


def plain(value: Any) -> Any:
    """Converts tensors, tuples and mappings to JSON values; NaN and infinity become None."""
    if isinstance(value, Tensor):
        value = value.detach().tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    # Lone surrogates, which a tokenizer may emit, cannot be written as UTF-8.
    return str(value).encode("utf-8", errors="replace").decode("utf-8")


def flatten_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a row to cells: nested mappings become columns `key/part`, segments `1.0 - 7.5`."""
    cells: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            cells |= {f"{key}/{part}": cell for part, cell in flatten_row(value).items()}
        elif isinstance(value, list):
            is_span = len(value) == 2 and all(isinstance(v, int | float) for v in value)
            cells[key] = f"{value[0]:.1f} - {value[1]:.1f}" if is_span else json.dumps(value)
        else:
            cells[key] = value
    return cells


def table_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Converts rows, which may have different columns, to columns of equal length."""
    flat = [flatten_row(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return {name: [row.get(name) for row in flat] for name in names}


class RolloutTable(Callback):
    """Saves the completions (`StepOutput.rows`) of the first and of every n-th optimizer step.

    The rows (plain dicts: query, truth, segment, every raw reward, the total, the text) are
    appended to `run_dir/rollouts.jsonl`, and logged to MLflow and TensorBoard if those are used.
    Steps without rows (supervised training) are skipped.

    Args:
        run_dir: folder of the run.
        every_n_steps: optimizer steps between two tables, at least 1.
        max_rows: completions saved per step, at least 1.
    """

    def __init__(self, *, run_dir: str | Path, every_n_steps: int, max_rows: int) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("max_rows", max_rows)):
            if value < 1:
                raise ValueError(f"rollout_table.{name} must be at least 1: got {value}")
        self.path = Path(run_dir) / FILE_NAME
        self.every_n_steps = every_n_steps
        self.max_rows = max_rows
        self._last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        if trainer.is_global_zero and self.path.exists():
            self._drop_after(trainer.global_step)

    def _drop_after(self, step: int) -> None:
        """Drops rows of steps that a resumed run is about to repeat, and a half-written line."""
        kept = []
        for line in self.path.read_text(encoding="utf-8").split("\n"):
            try:
                is_kept = json.loads(line)["step"] <= step
            except ValueError:  # cut off when the run was killed
                continue
            if is_kept:
                kept.append(line + "\n")
        write_text(self.path, "".join(kept))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step, last = trainer.global_step, self._last_step
        if step == last:  # gradients are still being accumulated
            return
        self._last_step = step
        # The quotients are compared, because one batch may have several optimizer steps.
        is_due = last == 0 or step // self.every_n_steps > last // self.every_n_steps
        taken = StepOutput.of(outputs)
        rows = taken.rows if taken is not None else None
        if not (is_due and rows and trainer.is_global_zero):
            return
        kept = [{"step": step, **plain(row)} for row in rows[: self.max_rows]]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        with reported_only(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(lines)
        log_table(trainer, table_columns(kept), name="rollouts", step=step)
