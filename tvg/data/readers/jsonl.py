"""Reads a user's own annotations: one query per line, or JSON as in Charades-STA."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tvg.data.files import load_json, load_json_lines, open_text, shown
from tvg.data.readers.charades import charades_queries
from tvg.data.readers.fields import (
    QueryIds,
    check_keys,
    clip_duration,
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
from tvg.data.readers.reader import annotation_reader
from tvg.data.readers.record import Query
from tvg.types import Segment

_KNOWN = (
    *("video", "query", "segment", "duration", "video_duration", "qid"),
    *("window", "difficulty", "prediction", "hint"),
)

_SHAPES = (
    '{"video", "query", "segment"} (a line each, or in a JSON list) or '
    '{video_id: {"timestamps", "sentences"}}'
)


@annotation_reader
def read_jsonl(
    path: Path,
    *,
    extensions: Sequence[str],
) -> Iterator[Query]:
    """Reads lines {"video": "a.mp4", "query": "...", "segment": [s, e]}.

    "video" is an id or a path. Optional keys, which may be null:

    - "window" [s, e]: the part of the file to show; segments are relative to its start.
    - "duration": of the window, if there is one.
    - "qid": the default is "video:index" without the extension; the index counts the file's
      queries on that video.
    - "difficulty", "prediction" [s, e] and "hint" [s, e].

    Numbers and texts under other keys go to `extra`.

    Raises:
        ValueError: the file is missing, is not JSON lines, has another structure, or has no
            usable example.
    """
    return _queries(_own_lines(path), extensions)


@annotation_reader
def read_custom(
    path: Path,
    *,
    extensions: Sequence[str],
) -> Iterator[Query]:
    """Reads the format of `read_jsonl` or `read_charades`, detected from the content.

    The records of `read_jsonl` may also be in a JSON list. A single record may span several lines.

    Raises:
        ValueError: one of these readers would raise it, or the content has another format.
    """
    return _custom_queries(path, extensions)


def _is_jsonl(path: Path) -> bool:
    """Returns whether the first line is a record: an object with a value that is not an object."""
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):  # multi-line JSON, or an error to be reported later
        return False
    return isinstance(record, dict) and not all(isinstance(v, dict) for v in record.values())


def _own_lines(path: Path) -> Iterator[tuple[str, Any]]:
    name = str(path)
    return ((f"{name}: line {number}", entry) for number, entry in load_json_lines(path))


def _custom_queries(path: Path, extensions: Sequence[str]) -> Iterator[Query]:
    if _is_jsonl(path):
        return _queries(_records(_own_lines(path)), extensions)
    data = load_json(path)
    if isinstance(data, dict) and any(isinstance(value, dict) for value in data.values()):
        return charades_queries(path, data)
    places = [(str(path), data)]
    if isinstance(data, list) and data:
        places = [(f"{path}: entry {index}", entry) for index, entry in enumerate(data)]
    return _queries(_records(places), extensions)


def _records(places: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for where, entry in places:
        if not (isinstance(entry, dict) and "video" in entry):
            if isinstance(entry, dict) and {"query", "segment"} & set(entry):
                check_keys(where, entry, _KNOWN)
            raise ValueError(f"{where}: expected {_SHAPES}, got {shown(entry)}")
        yield where, entry


def _queries(places: Iterable[tuple[str, Any]], extensions: Sequence[str]) -> Iterator[Query]:
    ids = QueryIds()
    for where, entry in places:
        entry = get_object(where, entry, "video, query and segment")
        check_keys(where, entry, _KNOWN)
        video = get_name(f"{where}: video", entry.get("video"))
        own_qid = ids.next(without_extension(video, extensions))
        window = _window(f"{where}: window", entry.get("window"))
        duration_s = get_duration(where, entry)
        yield Query(
            qid=get_qid(f"{where}: qid", entry.get("qid"), own_qid),
            video=video,
            sentence=get_text(f"{where}: query", entry.get("query")),
            segment=get_segment(f"{where}: segment", entry.get("segment")),
            duration_s=duration_s,
            window=window,
            difficulty=get_optional_number(f"{where}: difficulty", entry.get("difficulty")),
            prediction=get_optional_segment(f"{where}: prediction", entry.get("prediction")),
            hint=get_hint(f"{where}: hint", entry.get("hint"), clip_duration(duration_s, window)),
            extra=get_extra(entry, _KNOWN),
        )


def _window(where: str, value: Any) -> Segment | None:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2):
        raise ValueError(f"{where}: expected [start, end] in seconds, got {shown(value)}")
    return get_window(where, *value)
