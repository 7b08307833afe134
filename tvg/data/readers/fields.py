"""The parts of a record, read and checked; `where` begins every error message."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tvg.data.files import shown
from tvg.types import Segment


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def get_object(where: str, value: Any, expected: str) -> dict[str, Any]:
    """Returns an object; `expected` names the keys it should have, for the message."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object with {expected}, got {shown(value)}")
    return value


def get_text(where: str, value: Any) -> str:
    """Returns a text without the spaces around it."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a text, got {shown(value)}")
    return value.strip()


def get_name(where: str, value: Any) -> str:
    """Returns a text that may not be empty."""
    text = get_text(where, value)
    if not text:
        raise ValueError(f"{where}: expected a text, got an empty one")
    return text


def get_segment(where: str, value: Any) -> Segment:
    """Returns [start, end] as a segment, whatever their order."""
    if not (isinstance(value, list) and len(value) == 2 and all(map(is_number, value))):
        raise ValueError(f"{where}: expected [start, end] in seconds, got {shown(value)}")
    return Segment(float(value[0]), float(value[1]))


def get_optional_segment(where: str, value: Any) -> Segment | None:
    """Returns [start, end] as a segment, or None for null."""
    return None if value is None else get_segment(where, value)


def get_optional_number(where: str, value: Any) -> float | None:
    """Returns a finite number, or None for null."""
    if value is not None and not is_number(value):
        raise ValueError(f"{where}: expected a number, got {shown(value)}")
    return None if value is None else float(value)


def get_duration(where: str, entry: Mapping[str, Any]) -> float | None:
    """Returns "duration" or "video_duration" in seconds, or None where neither is stated."""
    duration = entry.get("duration", entry.get("video_duration"))
    if duration is not None and not (is_number(duration) and duration > 0):
        raise ValueError(
            f"{where}: expected a positive number of seconds as duration, got {shown(duration)}"
        )
    return None if duration is None else float(duration)


def get_hint(where: str, value: Any, duration_s: float | None) -> Segment | None:
    """Returns a coarse segment, which has to lie at least partly in the video, or None."""
    hint = get_optional_segment(where, value)
    end_s = math.inf if duration_s is None else duration_s
    if hint is not None and not hint.start_s < min(hint.end_s, end_s):
        raise ValueError(
            f"{where}: expected start < end, starting before the video's end, got {list(hint)}"
        )
    return hint


def get_window(where: str, start: Any, end: Any) -> Segment | None:
    """Returns the part of a file to show, or None where neither end is stated."""
    if start is None and end is None:
        return None
    if not (is_number(start) and is_number(end) and 0 <= start < end):
        raise ValueError(
            f"{where}: expected 0 <= start < end in seconds, or neither, got "
            f"{shown(start)} and {shown(end)}"
        )
    return Segment(float(start), float(end))


def get_extra(entry: Mapping[str, Any], known: Collection[str]) -> dict[str, str | float]:
    """Returns the numbers and texts under keys that the format does not know.

    Lists, objects, null and truth values are left out: nothing selects by them.
    """
    return {
        key: value
        for key, value in entry.items()
        if key not in known and (isinstance(value, str) or is_number(value))
    }


def get_qid(where: str, value: Any, otherwise: str) -> str:
    """Returns the id that the file states, a text or a whole number, or else the other one."""
    if value is None:
        return otherwise
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return get_name(where, value)


def without_extension(video: str, extensions: Sequence[str]) -> str:
    """Returns a video's id or path without the extension of a video file; other dots are kept."""
    stem, dot, extension = video.rpartition(".")
    if not (stem and dot):
        return video
    is_known = extension.lower() in (known.lower().lstrip(".") for known in extensions)
    return stem if is_known else video


class QueryIds:
    """Makes "video:index" ids; the index counts the file's queries on that video from 0.

    It counts what the file states, so no id depends on which videos were found.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def next(self, video: str) -> str:
        index = self._counts[video]
        self._counts[video] += 1
        return f"{video}:{index}"
