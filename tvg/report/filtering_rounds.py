"""Records of sample-filtering rounds: the examples, their statistics, and a printed table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tvg.core.text_files import write_json, write_text
from tvg.data.annotation_writer import jsonl_row, lines_text
from tvg.report.console import make_console
from tvg.task.predictions import Prediction
from tvg.types import GroundingExample


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """Result of one round of sample filtering.

    Attributes:
        number: number of epochs before the round.
        step: number of optimizer steps before the round.
        examples: all examples that the run started from, with their current difficulty.
        chosen: examples that the next epoch trains on.
        predictions: example ID -> prediction, for the examples scored in this round.
        num_unreadable: examples that could not be scored because their clips cannot be read.
        mastered_above: IoU above which an example counts as mastered.
    """

    number: int
    step: int
    examples: Sequence[GroundingExample]
    chosen: Sequence[GroundingExample]
    predictions: Mapping[str, Prediction]
    num_unreadable: int
    mastered_above: float

    def numbers(self) -> dict[str, float]:
        """Returns the metrics to log.

        Shares and means are over the scored examples, except `mean_difficulty_selected`, which is
        over the chosen ones. Difficulties are 100 * IoU.
        """
        scored = list(self.predictions.values())
        ious = [prediction.score or 0.0 for prediction in scored]
        chosen = [e.difficulty for e in self.chosen if e.difficulty is not None]
        return {
            "num_examples": len(self.examples),
            "num_scored": len(scored),
            "num_unreadable": self.num_unreadable,
            "num_selected": len(self.chosen),
            "mean_difficulty": 100 * _mean(ious),
            "mean_difficulty_selected": _mean(chosen),
            "share_zero": _mean([float(iou == 0) for iou in ious]),
            "share_mastered": _mean([float(iou > self.mastered_above) for iou in ious]),
            "share_unparsed": _mean([float(not prediction.is_parsed) for prediction in scored]),
            "share_exact_format": _mean([float(bool(p.is_exact)) for p in scored]),
        }

    def write(self, folder: Path) -> list[Path]:
        """Writes the examples and the numbers to two files and returns the paths."""
        selected = {example.qid for example in self.chosen}
        rows = [{**jsonl_row(e), "selected": e.qid in selected} for e in self.examples]
        return [
            write_text(folder / f"round_{self.number:02d}.jsonl", lines_text(rows)),
            write_json(
                folder / f"round_{self.number:02d}.json",
                {"round": self.number, "step": self.step, **self.numbers()},
            ),
        ]

    def __str__(self) -> str:
        numbers = self.numbers()
        return (
            f"filtering round {self.number}: {numbers['num_selected']} of "
            f"{numbers['num_examples']} examples selected (scored {numbers['num_scored']}: mean "
            f"IoU {numbers['mean_difficulty'] / 100:.3f}, {100 * numbers['share_zero']:.0f} % at "
            f"0, {100 * numbers['share_mastered']:.0f} % above {self.mastered_above:g})"
        )


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table with one row per round."""
    table = Table(title="sample filtering", title_justify="left", header_style="bold")
    heads = ("round", "step", "selected", "total", "mean IoU", "IoU 0", "mastered", "unparsed")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rounds:
        shares = [f"{row[f'share_{name}']:.1%}" for name in ("zero", "mastered", "unparsed")]
        counts = [str(row[name]) for name in ("round", "step", "num_selected", "num_examples")]
        table.add_row(*counts, f"{row['mean_difficulty'] / 100:.3f}", *shares)
    return table


def print_rounds(folder: Path) -> None:
    """Prints a table of the rounds whose statistics are in a folder."""
    files = sorted(folder.glob("round_*.json"))
    if files:
        rounds = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        make_console().print(rounds_table(rounds))


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
