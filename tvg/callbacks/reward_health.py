"""Reports why rewards give no learning signal."""

from __future__ import annotations

import logging
import re
from collections import deque
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tvg.core.text_files import write_text
from tvg.report.reward_causes import Cause, Limits, Tally, find_causes, tally
from tvg.tracking.sinks import log_file, mlflow_runs, on_tensorboard
from tvg.tracking.steady import reported_only
from tvg.training.step_output import StepOutput

log = logging.getLogger(__name__)

FILE_NAME = "reward_health.txt"
KL = "train/policy/kl"


class RewardHealth(Callback):
    """Checks the completions of the last rollouts and warns of problems that prevent learning.

    The problems are:

    - rewards that are 0 or equal in all completions;
    - groups whose completions all have the same reward;
    - answers that cannot be parsed, or are less often in exactly the requested format;
    - truncated completions;
    - a large KL.

    Each warning names the likely cause and the config key to look at. It is logged, appended to
    `run_dir/reward_health.txt`, and sent to MLflow (as a tag and that file) and TensorBoard if
    those are used. A warning is given once, and again if its cause was absent for two windows. A
    run shorter than a window is checked at its end. Only rank 0 reports, and it sees only the
    completions of rank 0.

    Args:
        run_dir: folder of the run.
        window: rollouts that are checked together, at least 1.
        max_unparsed: warn above this share of completions without a readable segment.
        max_truncated: warn above this share of completions truncated at the length limit.
        max_flat_groups: warn above this share of groups whose total rewards are all equal.
        max_kl: warn above this KL to the reference per token; None: never.
        max_new_tokens: the length limit of completions, which the messages state.
        max_exact_drop: warn if the share of answers in exactly the requested format falls by more
            than this below the best window so far.
        penalties: rewards whose best value is 0.
    """

    def __init__(
        self,
        *,
        run_dir: str | Path,
        window: int,
        max_unparsed: float,
        max_truncated: float,
        max_flat_groups: float,
        max_kl: float | None,
        max_new_tokens: int,
        max_exact_drop: float,
        penalties: list[str],
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"callbacks.reward_health.window: expected at least 1, got {window}")
        shares = {
            "max_unparsed": max_unparsed,
            "max_truncated": max_truncated,
            "max_flat_groups": max_flat_groups,
            "max_exact_drop": max_exact_drop,
        }
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(
                    f"callbacks.reward_health.{name}: expected a share from 0 to 1, got {share}"
                )
        self.path = Path(run_dir) / FILE_NAME
        self.window = window
        self.limits = Limits(**shares, max_kl=max_kl, max_new_tokens=max_new_tokens)
        self.penalties = penalties
        self._last: deque[tuple[Tally, float | None]] = deque(maxlen=window)
        self._num_rollouts = 0
        self._best_exact = 0.0  # share of exactly formatted answers in any window
        self._seen: dict[str, int] = {}  # cause -> the last rollout at which it was found
        self._num_lines: int | None = 0  # in the file; None: resumed from an older version

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_exact": self._best_exact,
            "last": [[asdict(counted), kl] for counted, kl in self._last],
            "num_rollouts": self._num_rollouts,
            "seen": dict(self._seen),
            "num_lines": self._num_lines,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best_exact = float(state_dict.get("best_exact", 0.0))
        last = [(Tally(**counted), kl) for counted, kl in state_dict.get("last", [])]
        self._last = deque(last, maxlen=self.window)
        self._num_rollouts = state_dict.get("num_rollouts", 0)
        self._seen = dict(state_dict.get("seen", {}))
        self._num_lines = state_dict.get("num_lines")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._drop_later_lines(trainer)

    def _drop_later_lines(self, trainer: pl.Trainer) -> None:
        """Drops lines written after the checkpoint, since they will be written again."""
        if self._num_lines is None or not (trainer.is_global_zero and self.path.exists()):
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        if len(lines) > self._num_lines:
            write_text(self.path, "".join(lines[: self._num_lines]))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        taken = StepOutput.of(outputs)
        rows = taken.rows if taken is not None else None
        if not (rows and trainer.is_global_zero):
            return
        logged = trainer.callback_metrics.get(KL)
        self._last.append((tally(rows), None if logged is None else float(logged)))
        self._num_rollouts += 1
        if len(self._last) == self.window:
            self._look(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not on_train_end: a run that is resumed after its last step never starts training.
        self._drop_later_lines(trainer)
        if 0 < len(self._last) < self.window:  # the run is shorter than a window
            self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for cause in self._new_causes(pl_module):
            self._tell(trainer, cause)

    def _new_causes(self, pl_module: pl.LightningModule) -> list[Cause]:
        found = reduce(add, (counted for counted, _ in self._last))
        kls = [kl for _, kl in self._last if kl is not None]
        weights = getattr(getattr(pl_module, "reward", None), "weights", {})
        causes = find_causes(
            found,
            self.limits,
            paid=[name for name in found.ranges if name and weights.get(name, 1.0) != 0],
            penalties=self.penalties,
            kl=sum(kls) / len(kls) if kls else None,
            best_exact=self._best_exact,
        )
        self._best_exact = max(self._best_exact, found.exact)
        now = self._num_rollouts
        # One different rollout hides a cause in every window that contains this rollout, although
        # the cause persists. A cause is therefore new only after an absence of two windows.
        pause = 2 * self.window
        new = [c for c in causes if now - self._seen.get(c.name, -pause) > pause]
        self._seen |= {cause.name: now for cause in causes}
        return new

    def _tell(self, trainer: pl.Trainer, cause: Cause) -> None:
        line = f"step {trainer.global_step}: {cause.message}"
        log.log(logging.WARNING if cause.is_grave else logging.INFO, "reward health, %s", line)
        with reported_only(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line + "\n")
        if self._num_lines is not None:
            self._num_lines += 1
        log_file(trainer, self.path)
        tag = re.sub(r"[^\w.-]", "_", f"reward_health.{cause.name}")
        for client, run_id in mlflow_runs(trainer):
            client.set_tag(run_id, tag, line)
        step = trainer.global_step
        on_tensorboard(
            trainer, lambda writer: writer.add_text("reward_health", line, global_step=step)
        )
