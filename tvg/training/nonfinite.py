"""Counts steps with a non-finite loss or gradient; too many in a row raise an error."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvg.core.text_files import write_json
from tvg.types import GroundingExample

log = logging.getLogger(__name__)

Describe = Callable[[], list[dict[str, Any]]]


class SkippedSteps:
    """Counts the skipped steps, in total and in a row.

    Args:
        max_in_a_row: an error is raised after this many consecutive skipped steps; at least 1.

    Raises:
        ValueError: `max_in_a_row` is below 1; the message names its key.
    """

    def __init__(self, max_in_a_row: int) -> None:
        if max_in_a_row < 1:
            raise ValueError(
                f"objective.max_skipped_steps: expected at least 1, got {max_in_a_row}"
            )
        self.max_in_a_row = max_in_a_row
        self.num = 0
        self.num_in_a_row = 0

    def note(
        self,
        *,
        is_skipped: bool,
        step: int,
        loss: float,
        grad_norm: float,
        describe: Describe,
        file: Path,
    ) -> None:
        """Records a step.

        Args:
            is_skipped: True if the step was skipped; equal on every rank.
            step: number of optimizer steps before this one.
            loss: loss of this rank.
            grad_norm: gradient norm over all ranks.
            describe: returns rows about the step's examples, for the file.
            file: written if training stops.

        Raises:
            ValueError: too many steps in a row were skipped; the message names the file.
        """
        if not is_skipped:
            self.num_in_a_row = 0
            return
        self.num += 1
        self.num_in_a_row += 1
        log.warning(
            "step %d is skipped: loss %g, gradient norm %g (%d steps skipped so far)",
            *(step + 1, loss, grad_norm, self.num),
        )
        if self.num_in_a_row < self.max_in_a_row:
            return
        found = {"step": step + 1, "loss": _plain(loss), "grad_norm": _plain(grad_norm)}
        write_json(file, {**found, "rows": _plain(describe())})
        raise ValueError(
            f"objective.max_skipped_steps: {self.num_in_a_row} steps in a row had a "
            f"non-finite loss or gradient, up to step {step + 1} (loss {loss:g}, gradient norm "
            f"{grad_norm:g}). The batch of this step is in {file}. The last checkpoint contains "
            "the weights before these steps; a lower objective.optimizer.lr or another "
            "trainer.precision may help"
        )

    def state_dict(self) -> dict[str, int]:
        return {"num": self.num, "num_in_a_row": self.num_in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.num, self.num_in_a_row = state["num"], state["num_in_a_row"]


def example_row(example: GroundingExample, **more: Any) -> dict[str, Any]:
    """Returns the fields that identify an example, and further values to report."""
    segment = None if example.segment is None else list(example.segment)
    video = str(example.video_path or example.video)
    row = {"qid": example.qid, "video": video, "query": example.query, "truth": segment}
    return {**row, **more}


def completion_rows(
    examples: Sequence[GroundingExample],
    texts: Sequence[str],
    rewards: Sequence[float],
    *,
    group_size: int,
) -> list[dict[str, Any]]:
    """Returns one row per completion; N texts and rewards, N = group_size * number of examples."""
    return [
        example_row(examples[n // group_size], reward=reward, completion=text)
        for n, (text, reward) in enumerate(zip(texts, rewards, strict=True))
    ]


def _plain(value: Any) -> Any:
    """Converts NaN and infinity to text, because JSON has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value
