"""Results of an evaluation: predictions as JSONL, metrics as JSON, and a printed table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tvg.core.printable import printable_line
from tvg.core.writing import whole_file
from tvg.types import Segment


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One query with the policy's answer."""

    qid: str
    video: str
    query: str
    segment: Segment | None  # predicted; None if the answer has none
    truth: Segment | None  # None if unknown
    iou: float | None  # temporal IoU of the two; None if the truth is unknown
    text: str  # the completion as generated
    duration_s: float
    is_parsed: bool
    is_exact: bool | None = None  # text has exactly the requested format; None: unknown


def write_text(path: str | Path, text: str) -> Path:
    """Writes UTF-8 text atomically, so that the file is complete or absent; creates its folder.

    Raises:
        OSError: the disk is full or not writable; the message names the file and the disk.
    """
    path = Path(path)
    with (
        whole_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.write(text)
    return path


def write_json(path: str | Path, obj: Any) -> Path:
    """Writes indented JSON atomically.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"cannot write {path}: {error}") from error
    return write_text(path, _valid_unicode(text) + "\n")


def _valid_unicode(text: str) -> str:
    """Replaces lone surrogates by `?`; a tokenizer may emit them, but UTF-8 cannot encode them."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> Path:
    """Writes one JSON object per line, atomically; a segment is [start_s, end_s] or null.

    Raises:
        ValueError: a number is NaN or infinite; the message names the query's id.
    """
    lines = []
    for prediction in predictions:
        try:
            line = json.dumps(asdict(prediction), ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise ValueError(
                f"cannot write {path}: prediction {prediction.qid}: {error}"
            ) from error
        lines.append(_valid_unicode(line) + "\n")
    return write_text(path, "".join(lines))


def _segment(value: Any) -> Segment | None:
    if value is None:
        return None
    start_s, end_s = value
    return Segment(float(start_s), float(end_s))


def read_predictions(path: str | Path) -> list[Prediction]:
    """Reads a file of `write_predictions`; unknown keys are ignored.

    Raises:
        ValueError: a line is not a prediction; the message names the file and the line.
    """
    names = [field.name for field in fields(Prediction)]
    predictions = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                values = {name: row[name] for name in names if name in row or name != "is_exact"}
                values |= {name: _segment(values[name]) for name in ("segment", "truth")}
            except (ValueError, TypeError, KeyError) as error:
                problem = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{path}, line {number}: not a prediction: {problem}") from error
            predictions.append(Prediction(**values))
    return predictions


def output_folder_check(path: str | Path) -> Path:
    """Checks, before any work is done, that results can be written to a folder.

    The folder need not exist; nothing is created.

    Raises:
        ValueError: the path is a file, lies below one, or is not writable.
    """
    path = Path(path)
    refusal = f"cannot write results to the output folder {path}"
    if "\0" in str(path):
        raise ValueError(f"{refusal!r}: the name holds a NUL character")
    try:
        nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    except OSError as error:  # name too long, or folder not readable
        raise ValueError(f"{refusal}: {error}") from error
    if not nearest.is_dir():
        raise ValueError(f"{refusal}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{refusal}: {nearest} is read-only for this user")
    return path


def metrics_table(metrics: Mapping[str, Mapping[str, Any]], *, title: str | None = None) -> Table:
    """A table with one row per metric and one column per policy, 95 % intervals in parentheses.

    Args:
        metrics: name of the policy -> dict of `tvg.core.metrics.grounding_metrics`.
        title: shown above the table.
    """
    table = Table(
        title=title and escape(printable_line(title)), title_justify="left", header_style="bold"
    )
    table.add_column("metric", no_wrap=True)
    for name in metrics:
        table.add_column(escape(printable_line(name)), justify="right", no_wrap=True)
    names = dict.fromkeys(key for values in metrics.values() for key in values if key != "ci95")
    for name in names:
        table.add_row(escape(name), *(_cell(values, name) for values in metrics.values()))
    return table


def _cell(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if value is None:
        return "-"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    interval = values.get("ci95", {}).get(name)
    return f"{text} ({interval[0]:.3f}–{interval[1]:.3f})" if interval else text


def print_metrics(
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    title: str | None = None,
    console: Console | None = None,
) -> None:
    """Prints `metrics_table`, with a line that explains the parentheses."""
    console = console or Console()
    console.print(metrics_table(metrics, title=title))
    if any(values.get("ci95") for values in metrics.values()):
        console.print("In parentheses: 95 % bootstrap interval over the queries.")
