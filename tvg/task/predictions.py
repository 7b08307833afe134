"""Predictions, and their file with one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tvg.core.text_files import valid_unicode, write_text
from tvg.types import Segment


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One query with the policy's answer; fields that a task does not use are None."""

    qid: str
    video: str
    query: str
    segment: Segment | None = None  # predicted; None if the answer has none
    truth: Segment | None = None  # None if unknown
    answer: str | None = None  # as text, if it is not a segment
    expected: str | None = None  # the correct answer as text; None if unknown
    score: float | None  # in [0, 1]: temporal IoU, or 1 for a correct answer; None: truth unknown
    text: str  # the completion as generated
    duration_s: float
    is_parsed: bool
    is_exact: bool | None = None  # text has exactly the requested format; None: unknown


_SEGMENTS = ("segment", "truth")
_FORMER_NAMES = {"iou": "score"}  # in files written before 2026-11-29


def known_scores(predictions: Iterable[Prediction]) -> list[float]:
    """Returns the score of every prediction.

    Raises:
        ValueError: the truth of a query is unknown.
    """
    scores = []
    for prediction in predictions:
        if prediction.score is None:
            raise ValueError(f"{prediction.qid}: its truth is not known, so it cannot be scored")
        scores.append(prediction.score)
    return scores


def prediction_of(row: Mapping[str, Any]) -> Prediction:
    """Converts a JSON object to a prediction; unknown keys are ignored.

    Raises:
        KeyError: a required key is missing.
        TypeError, ValueError: a segment is not a pair of numbers.
    """
    row = {_FORMER_NAMES.get(name, name): value for name, value in row.items()}
    known = {f.name: f.default is MISSING for f in fields(Prediction)}
    values = {name: row[name] for name, is_required in known.items() if is_required or name in row}
    return Prediction(**{**values, **{name: _segment(row.get(name)) for name in _SEGMENTS}})


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
    """Reads a file that `write_predictions` wrote; unknown keys are ignored.

    Raises:
        ValueError: a line is not a prediction; the message names the file and the line.
    """
    predictions = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                predictions.append(prediction_of(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                problem = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{path}, line {number}: not a prediction: {problem}") from error
    return predictions
