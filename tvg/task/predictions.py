"""The record of an answered query, and its file: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tvg.core.text_files import valid_unicode, write_text
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
        lines.append(valid_unicode(line) + "\n")
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
