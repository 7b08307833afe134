"""Reads the JSON of Charades-STA, ActivityNet Captions and TimeLens-Bench: lists by video id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tvg.data.files import load_json_object, shown
from tvg.data.readers.fields import (
    check_keys,
    get_duration,
    get_hint,
    get_object,
    get_spans,
    get_text,
)
from tvg.data.readers.reader import annotation_reader
from tvg.data.readers.record import Query

# Key names in different releases; messages use the first name if none is present.
_NAMES = {
    "timestamps": ("timestamps", "spans"),
    "sentences": ("sentences", "queries"),
    "hints": ("hints",),
}
_KNOWN = (*chain(*_NAMES.values()), "duration", "video_duration")


@annotation_reader
def read_charades(
    path: Path,
    *,
    extensions: Sequence[str],
) -> Iterator[Query]:
    """Reads {video_id: {"duration", "timestamps": [[s, e], ...], "sentences": [...]}} JSON.

    Variants: "video_duration" instead of "duration", or neither; "spans" instead of "timestamps"
    and "queries" instead of "sentences" (TimeLens-Bench). The optional list "hints" contains a
    coarse [s, e] or null for each of "timestamps". An entry of "timestamps" may be a list of
    segments, as in TimeLens-100K. Other keys, and "hints" that are not a list, are ignored. A
    query's id is "video_id:index" with the index into the file's list.

    Raises:
        ValueError: the file is missing, is not JSON, has another structure, or has no usable
            example.
    """
    return charades_queries(path, load_json_object(path))


def charades_queries(path: Path, data: dict[str, Any]) -> Iterator[Query]:
    """Yields the queries of a file's content; see `read_charades`."""
    for video, entry in data.items():
        where = f"{path}: id {video!r}"
        entry = get_object(where, entry, "duration, timestamps and sentences")
        check_keys(where, entry, _KNOWN)
        duration_s = get_duration(where, entry)
        lists = _lists(where, entry)
        names = {key: name for key, (name, _) in lists.items()}
        spans, sentences = lists["timestamps"][1], lists["sentences"][1]
        hints = lists["hints"][1] if "hints" in lists else [None] * len(spans)
        for index, (span, sentence, hint) in enumerate(zip(spans, sentences, hints, strict=True)):
            segments = get_spans(f"{where}: {names['timestamps']}[{index}]", span)
            yield Query(
                qid=f"{video}:{index}",
                video=video,
                sentence=get_text(f"{where}: {names['sentences']}[{index}]", sentence),
                segment=segments[0],
                duration_s=duration_s,
                hint=get_hint(f"{where}: hints[{index}]", hint, duration_s or None),
                num_spans=len(segments),
            )


def _lists(where: str, entry: dict[str, Any]) -> dict[str, tuple[str, list[Any]]]:
    """Returns the names and contents of a video's lists, which have equal lengths."""
    lists: dict[str, tuple[str, list[Any]]] = {}
    for key, names in _NAMES.items():
        name = next((name for name in names if name in entry), names[0])
        value = entry.get(name)
        if key == "hints" and not isinstance(value, list):
            continue  # an unrelated key of this name
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list as {name}, got {shown(value)}")
        lists[key] = (name, value)
    lengths = {name: len(value) for name, value in lists.values()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"{where}: expected lists of one length, got {counts}")
    return lists
