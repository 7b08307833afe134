"""A user's own annotations: a line a query, or the JSON of Charades-STA's shape."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from tvg.data.files import load_json_lines, open_text
from tvg.data.readers.charades import read_charades
from tvg.data.readers.fields import (
    QueryIds,
    get_duration,
    get_extra,
    get_hint,
    get_name,
    get_object,
    get_optional_number,
    get_optional_segment,
    get_qid,
    get_segment,
    get_text,
    get_window,
    without_extension,
)
from tvg.data.readers.record import Query, ReadResult
from tvg.data.readers.rules import read_queries

_KNOWN = (
    *("video", "query", "segment", "duration", "video_duration", "qid"),
    *("window", "difficulty", "prediction", "hint"),
)


def read_jsonl(
    annotation_file: str | os.PathLike[str],
    video_dir: str | os.PathLike[str] | None,
    *,
    extensions: Sequence[str] = ("mp4", "mkv", "webm", "avi"),
    on_missing: Literal["error", "skip"] = "error",
    clamp_ends: bool,
    drop_invalid: bool,
) -> ReadResult:
    """Reads lines {"video": "a.mp4", "query": "...", "segment": [s, e]}.

    May be there, or null: "duration" (of the window, where there is one), "qid", "window" [s, e]
    (the part of the file that is meant; the segment counts from its start), "difficulty",
    "prediction" [s, e] and "hint" [s, e]. Other numbers and texts go to `extra`. "video" is an id
    or a path. A query's id is "video:index" without an extension, the index counting the file's own
    queries on that video. For the rest see `tvg.data.readers.rules.read_queries`.

    Raises:
        ValueError: the file is missing, no JSON lines, of another shape, or leaves no example.
    """
    path = Path(annotation_file)
    return read_queries(
        path,
        _queries(path, extensions),
        video_dir,
        extensions=extensions,
        on_missing=on_missing,
        clamp_ends=clamp_ends,
        drop_invalid=drop_invalid,
    )


def read_custom(
    annotation_file: str | os.PathLike[str],
    video_dir: str | os.PathLike[str] | None,
    *,
    extensions: Sequence[str] = ("mp4", "mkv", "webm", "avi"),
    on_missing: Literal["error", "skip"] = "error",
    clamp_ends: bool,
    drop_invalid: bool,
) -> ReadResult:
    """Reads what `read_jsonl` or what `read_charades` reads, told by the content.

    Raises:
        ValueError: as of the reader that the file's first line calls for.
    """
    reader = read_jsonl if _is_jsonl(Path(annotation_file)) else read_charades
    return reader(
        annotation_file,
        video_dir,
        extensions=extensions,
        on_missing=on_missing,
        clamp_ends=clamp_ends,
        drop_invalid=drop_invalid,
    )


def _is_jsonl(path: Path) -> bool:
    """Whether the first line is a record of its own: an object that holds more than objects."""
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
    try:
        record = json.loads(first)
    except json.JSONDecodeError:  # JSON over several lines, or a mistake that a reader will name
        return False
    return isinstance(record, dict) and not all(isinstance(v, dict) for v in record.values())


def _queries(path: Path, extensions: Sequence[str]) -> Iterator[Query]:
    ids = QueryIds()
    for number, entry in load_json_lines(path):
        where = f"{path}: line {number}"
        entry = get_object(where, entry, "video, query and segment")
        video = get_name(f"{where}: video", entry.get("video"))
        own_qid = ids.next(without_extension(video, extensions))
        window = get_optional_segment(f"{where}: window", entry.get("window"))
        if window is not None:
            window = get_window(f"{where}: window", *window)
        duration_s = get_duration(where, entry)
        if duration_s is None and window is not None:
            duration_s = window.length_s
        yield Query(
            qid=get_qid(f"{where}: qid", entry.get("qid"), own_qid),
            video=video,
            sentence=get_text(f"{where}: query", entry.get("query")),
            segment=get_segment(f"{where}: segment", entry.get("segment")),
            duration_s=duration_s,
            window=window,
            difficulty=get_optional_number(f"{where}: difficulty", entry.get("difficulty")),
            prediction=get_optional_segment(f"{where}: prediction", entry.get("prediction")),
            hint=get_hint(f"{where}: hint", entry.get("hint"), duration_s),
            extra=get_extra(entry, _KNOWN),
        )
