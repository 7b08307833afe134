"""Reads Time-R1's training list: queries with clip windows and a model's predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tvg.data.files import load_json_list
from tvg.data.readers.fields import (
    QueryIds,
    check_keys,
    get_duration,
    get_extra,
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

_KNOWN = (
    *("video", "sentence", "timestamp", "duration", "video_duration", "qid"),
    *("video_start", "video_end", "difficulty", "pred"),
)


@annotation_reader
def read_time_r1(
    path: Path,
    *,
    extensions: Sequence[str],
) -> Iterator[Query]:
    """Reads a JSON list of {"video", "sentence", "timestamp": [s, e], ...}.

    "video" is a path. It is searched in `video_dir` as given, then by its file name. Optional keys:

    - "video_start" and "video_end": the window, in seconds of the file.
    - "duration": of the window.
    - "difficulty": 100 * IoU of a model's prediction, and "pred": this prediction.
    - "qid": the default is "VIDEO:index"; the index counts the file's queries on that video.

    Numbers and texts under other keys go to `extra`.

    Raises:
        ValueError: the file is missing, is not JSON, has another structure, or has no usable
            example.
    """
    return _queries(path, extensions)


def _queries(path: Path, extensions: Sequence[str]) -> Iterator[Query]:
    ids = QueryIds()
    for index, entry in enumerate(load_json_list(path)):
        where = f"{path}: entry {index}"
        entry = get_object(where, entry, "video, timestamp and sentence")
        check_keys(where, entry, _KNOWN)
        video = get_name(f"{where}: video", entry.get("video"))
        window = get_window(
            f"{where}: video_start and video_end", entry.get("video_start"), entry.get("video_end")
        )
        own_qid = ids.next(without_extension(Path(video).name, extensions))
        yield Query(
            qid=get_qid(f"{where}: qid", entry.get("qid"), own_qid),
            video=video,
            sentence=get_text(f"{where}: sentence", entry.get("sentence")),
            raw_sentence=entry.get("sentence"),
            segment=get_segment(f"{where}: timestamp", entry.get("timestamp")),
            duration_s=get_duration(where, entry),
            window=window,
            difficulty=get_optional_number(f"{where}: difficulty", entry.get("difficulty")),
            prediction=get_optional_segment(f"{where}: pred", entry.get("pred")),
            extra=get_extra(entry, _KNOWN),
        )
