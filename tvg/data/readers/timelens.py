"""Reads TimeLens-100K: one video per line. `read_charades` reads TimeLens-Bench."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tvg.data.files import load_json_lines, shown
from tvg.data.readers.fields import (
    QueryIds,
    check_keys,
    get_duration,
    get_extra,
    get_name,
    get_object,
    get_spans,
    get_text,
    without_extension,
)
from tvg.data.readers.reader import annotation_reader
from tvg.data.readers.record import Query

_KNOWN_OF_VIDEO = ("video_path", "duration", "video_duration", "events")
_KNOWN_OF_EVENT = ("query", "span")


@annotation_reader
def read_timelens_100k(
    path: Path,
    *,
    extensions: Sequence[str],
) -> Iterator[Query]:
    """Reads lines {"video_path", "duration", "source", "events": [{"query", "span"}, ...]}.

    A span is [s, e] or a list of such pairs. An event with several spans has no single answer, so
    training drops it and a benchmark keeps its first span. "video_path" is searched in `video_dir`
    as given, then by its file name. Numbers and texts under other keys of the video (such as
    "source") and the event go to `extra`. A query's id is "video_path:index" without the extension.

    Raises:
        ValueError: the file is missing, is not JSON lines, has another structure, or has no
            usable example.
    """
    return _queries(path, extensions)


def _queries(path: Path, extensions: Sequence[str]) -> Iterator[Query]:
    ids, name = QueryIds(), str(path)
    for number, entry in load_json_lines(path):
        where = f"{name}: line {number}"
        entry = get_object(where, entry, "video_path, duration and events")
        check_keys(where, entry, _KNOWN_OF_VIDEO)
        video = get_name(f"{where}: video_path", entry.get("video_path"))
        duration_s = get_duration(where, entry)
        events = entry.get("events")
        if not isinstance(events, list):
            raise ValueError(f"{where}: expected a list as events, got {shown(events)}")
        stem = without_extension(video, extensions)
        extra = get_extra(entry, _KNOWN_OF_VIDEO)
        for index, event in enumerate(events):
            place = f"{where}: events[{index}]"
            event = get_object(place, event, "query and span")
            check_keys(place, event, _KNOWN_OF_EVENT)
            spans = get_spans(f"{place}: span", event.get("span"))
            yield Query(
                qid=ids.next(stem),
                video=video,
                sentence=get_text(f"{place}: query", event.get("query")),
                segment=spans[0],
                duration_s=duration_s,
                extra={**extra, **get_extra(event, _KNOWN_OF_EVENT)},
                num_spans=len(spans),
            )
