"""Reads TVGBench: queries of 11 types from five sources, some on a window of their video."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tvg.data.files import load_json_list, shown
from tvg.data.readers.fields import (
    NUMBER,
    QueryIds,
    as_number,
    check_keys,
    get_duration,
    get_extra,
    get_name,
    get_object,
    get_text,
    get_window,
    without_extension,
)
from tvg.data.readers.reader import annotation_reader
from tvg.data.readers.record import Query
from tvg.types import Segment

_KNOWN = (
    *("path", "question", "answer", "start", "end", "duration", "video_duration"),
    # "question_type" is always "video temporal grounding"; "dataset_name" mostly repeats "source".
    *("qsemtype", "source", "question_type", "dataset_name"),
)
_ANSWER = re.compile(rf"\s*({NUMBER})\s*-\s*({NUMBER})\s*", re.ASCII)


@annotation_reader
def read_tvgbench(
    path: Path,
    *,
    extensions: Sequence[str],
) -> Iterator[Query]:
    """Reads a JSON list of {"path", "question", "answer": "s-e", ...}.

    "path" is searched in `video_dir` as given, then by its file name. Optional keys:

    - "start" and "end": the window, in seconds of the file.
    - "duration": of the window.
    - "qsemtype" and "source": stored in `extra` as "query_type" and "source".

    A query's id is "VIDEO:index"; the index counts the file's queries on that video.

    Raises:
        ValueError: the file is missing, is not JSON, has another structure, or has no usable
            example.
    """
    return _queries(path, extensions)


def _queries(path: Path, extensions: Sequence[str]) -> Iterator[Query]:
    ids = QueryIds()
    for index, entry in enumerate(load_json_list(path)):
        where = f"{path}: entry {index}"
        entry = get_object(where, entry, "path, question and answer")
        check_keys(where, entry, _KNOWN)
        video = get_name(f"{where}: path", entry.get("path"))
        window = get_window(f"{where}: start and end", entry.get("start"), entry.get("end"))
        yield Query(
            qid=ids.next(without_extension(Path(video).name, extensions)),
            video=video,
            sentence=get_text(f"{where}: question", entry.get("question")),
            raw_sentence=entry.get("question"),
            segment=_answer(f"{where}: answer", entry.get("answer")),
            duration_s=get_duration(where, entry),
            window=window,
            extra={**get_extra(entry, _KNOWN), **_type_and_source(where, entry)},
        )


def _answer(where: str, value: Any) -> Segment:
    match = _ANSWER.fullmatch(value) if isinstance(value, str) else None
    ends = [as_number(text) for text in match.groups()] if match is not None else [None, None]
    if ends[0] is None or ends[1] is None:
        raise ValueError(f"{where}: expected 'start-end' in seconds, got {shown(value)}")
    return Segment(ends[0], ends[1])


def _type_and_source(where: str, entry: dict[str, Any]) -> dict[str, str]:
    result: dict[str, str] = {}
    if entry.get("qsemtype") is not None:
        result["query_type"] = get_name(f"{where}: qsemtype", entry["qsemtype"])
    if entry.get("source") is not None:
        # The path, on the authors' disk, of the file that the query was taken from.
        result["source"] = Path(get_name(f"{where}: source", entry["source"])).stem
    return result
