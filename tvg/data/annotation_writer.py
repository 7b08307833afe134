"""Formats examples as annotation rows and files that the readers can read back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvg.types import GroundingExample, Segment

Row = dict[str, Any]


def jsonl_row(example: GroundingExample) -> Row:
    """Returns an example as a row for `read_jsonl` (`data=custom`); unknown values are omitted."""
    plain = _without_lead_in(example)
    return _stated(
        {
            "qid": plain["qid"],
            "video": plain["video"],
            "query": plain["query"],
            "segment": _listed(plain["segment"]),
            "duration": plain["duration_s"],
            "window": _listed(plain["window"]),
            "hint": _listed(plain["hint"]),
            "difficulty": plain["difficulty"],
            "prediction": _listed(plain["prediction"]),
        },
        plain["extra"],
    )


def time_r1_row(example: GroundingExample) -> Row:
    """Returns an example as a row for `tvg.data.readers.read_time_r1` (`data=timerft`).

    The format has no coarse hints, so hints are lost.
    """
    plain = _without_lead_in(example)
    start_s, end_s = plain["window"] or (None, None)
    return _stated(
        {
            "qid": plain["qid"],
            "video": plain["video"],
            "sentence": plain["query"] if example.raw_query is None else example.raw_query,
            "timestamp": _listed(plain["segment"]),
            "duration": plain["duration_s"],
            "video_start": start_s,
            "video_end": end_s,
            "difficulty": plain["difficulty"],
            "pred": _listed(plain["prediction"]),
        },
        plain["extra"],
    )


def annotation_text(path: str | Path, examples: Sequence[GroundingExample]) -> str:
    """Returns the text of an annotation file; the file's extension selects the format.

    Args:
        path: `.json` selects Time-R1's list (`data=timerft`), `.jsonl` our own format
            (`data=custom`).
        examples: the examples in the order of writing; each needs a segment.

    Raises:
        ValueError: the extension is unknown (`format_of`), or an example has no segment.
    """
    row = format_of(path)
    for example in examples:
        if example.segment is None:
            raise ValueError(f"{example.qid}: an annotation file needs a true segment, got none")
    rows = [row(example) for example in examples]
    if row is jsonl_row:
        return lines_text(rows)
    return _json(rows, indent=1) + "\n"


def lines_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns rows as JSON, one object per line."""
    return "".join(_json(row) + "\n" for row in rows)


def format_of(path: str | Path) -> Callable[[GroundingExample], Row]:
    """Returns the function that makes the rows of a file with this name.

    Raises:
        ValueError: the extension is neither `.json` nor `.jsonl`.
    """
    known = {".json": time_r1_row, ".jsonl": jsonl_row}
    extension = os.path.splitext(path)[1].lower()
    if extension not in known:
        raise ValueError(
            f"expected a name that ends with .json (Time-R1's list) or .jsonl, got {str(path)!r}"
        )
    return known[extension]


def _json(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    if text.isascii() or text == text.encode("utf-8", errors="ignore").decode("utf-8"):
        return text
    return json.dumps(value, allow_nan=False, indent=indent)  # lone surrogates need escapes


def _without_lead_in(example: GroundingExample) -> Row:
    """Returns the example's fields with the times of its file, before padding shifted them."""
    names = ("segment", "window", "hint", "prediction", "difficulty", "duration_s", "extra")
    plain: Row = {name: getattr(example, name) for name in names}
    plain |= {"qid": example.qid, "video": example.video, "query": example.query}
    if example.lead_in is None:
        return plain
    by_s = example.lead_in.length_s
    for name in ("segment", "hint", "prediction"):
        if plain[name] is not None:
            plain[name] = Segment(*(round(second - by_s, 6) for second in plain[name]))
    if plain["duration_s"] is not None:
        plain["duration_s"] = round(plain["duration_s"] - by_s, 6)
    return plain


def _listed(segment: Segment | None) -> list[float] | None:
    return None if segment is None else list(segment)


def _stated(row: Row, extra: Mapping[str, str | float]) -> Row:
    """Returns the row without its None values, followed by the file's extra fields."""
    stated = {name: value for name, value in row.items() if value is not None}
    return stated | {name: value for name, value in extra.items() if name not in row}
