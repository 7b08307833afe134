"""Reads and checks the fields of a record; every error message begins with `where`."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tvg.data.files import shown
from tvg.types import Segment

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"  # as written in texts; no nan, no 1_000
# A stated duration may exceed its window's length by this much, because files round to hundredths.
WINDOW_ROUNDING_S = 0.01


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a finite number; true and false are not."""
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):  # not a number, or an integer of 400 digits
        return False


def as_number(value: Any) -> float | None:
    """Returns a finite number, which may be written as text; None for anything else."""
    if type(value) is float:  # fast path for the usual case
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        value = float(value) if re.fullmatch(NUMBER, value.strip(), re.ASCII) else None
    return float(value) if is_number(value) else None


def get_object(where: str, value: Any, expected: str) -> dict[str, Any]:
    """Returns a JSON object; `expected` names its keys for the error message."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object with {expected}, got {shown(value)}")
    return value


def check_keys(where: str, entry: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises ValueError for an unknown key that resembles a missing known key (a misspelling).

    Other unknown keys are allowed; see `get_extra`.
    """
    for key in entry:
        meant = None if key in known else _meant(key, tuple(known))
        if meant is not None and entry.get(meant) is None:
            raise ValueError(f"{where}: unknown key {key!r}; did you mean {meant!r}?")


@lru_cache(maxsize=1024)
def _meant(key: str, known: tuple[str, ...]) -> str | None:
    # "id" and "difficulty_rank" are valid keys, not misspellings of "qid" and "difficulty".
    near = [
        name for name in known if min(len(name), len(key)) > 3 and abs(len(name) - len(key)) < 3
    ]
    return next(iter(difflib.get_close_matches(key, near, n=1, cutoff=0.75)), None)


def get_text(where: str, value: Any) -> str:
    """Returns a text without surrounding whitespace."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a text, got {shown(value)}")
    return value.strip()


def get_name(where: str, value: Any) -> str:
    """Returns a non-empty text."""
    text = get_text(where, value)
    if not text:
        raise ValueError(f"{where}: expected a text, got an empty text")
    return text


def get_segment(where: str, value: Any) -> Segment:
    """Returns [start, end] as a segment, without checking their order."""
    if isinstance(value, list) and len(value) == 2:
        start_s, end_s = map(as_number, value)
        if start_s is not None and end_s is not None:
            return Segment(start_s, end_s)
    raise ValueError(f"{where}: expected [start, end] in seconds, got {shown(value)}")


def get_spans(where: str, value: Any) -> list[Segment]:
    """Returns [s, e] as a list of one segment, or [[s, e], ...] as one or more."""
    if isinstance(value, list) and value and all(isinstance(span, list) for span in value):
        return [get_segment(where, span) for span in value]
    return [get_segment(where, value)]


def get_optional_segment(where: str, value: Any) -> Segment | None:
    """Returns [start, end] as a segment, or None for null."""
    return None if value is None else get_segment(where, value)


def get_optional_number(where: str, value: Any) -> float | None:
    """Returns a finite number, or None for null."""
    if value is None:
        return None
    number = as_number(value)
    if number is None:
        raise ValueError(f"{where}: expected a number, got {shown(value)}")
    return number


def get_duration(where: str, entry: Mapping[str, Any]) -> float | None:
    """Returns "duration" or "video_duration" in seconds, or None if neither is stated.

    0 is returned as is: it occurs in published files, and `rules.py` counts it as a defect.
    """
    stated = entry.get("duration")
    if stated is None:
        stated = entry.get("video_duration")
    duration_s = as_number(stated)
    if stated is not None and (duration_s is None or duration_s < 0):
        raise ValueError(f"{where}: expected 0 or more seconds as duration, got {shown(stated)}")
    return duration_s


def clip_duration(stated_s: float | None, window: Segment | None) -> float | None:
    """Returns the duration of the clip, at most its window's length; None if unknown.

    A stated duration that exceeds the window is the duration of the entire file.
    """
    if not stated_s:
        return None if window is None else window.length_s
    if window is not None and stated_s > window.length_s + WINDOW_ROUNDING_S:
        return window.length_s
    return stated_s


def get_hint(where: str, value: Any, duration_s: float | None) -> Segment | None:
    """Returns a coarse segment that starts inside the video, or None for null."""
    if value is None:
        return None
    hint = get_segment(where, value)
    end_s = math.inf if duration_s is None else duration_s
    if not hint.start_s < min(hint.end_s, end_s):
        raise ValueError(
            f"{where}: expected start < end, starting before the video's end, got {list(hint)}"
        )
    return hint


def get_window(where: str, start: Any, end: Any) -> Segment | None:
    """Returns the part of a file to show, or None for the whole file.

    A missing start means 0, and a start of 0 without an end means the entire file. A later start
    without an end raises ValueError, because the clip's duration would be unknown: the stated
    duration may belong to the file or to the clip.
    """
    start_s = 0.0 if start is None else as_number(start)
    if end is None and start_s == 0:
        return None
    end_s = as_number(end)
    if start_s is None or end_s is None or not 0 <= start_s < end_s:
        raise ValueError(
            f"{where}: expected 0 <= start < end in seconds, or no window, got "
            f"{shown(start)} and {shown(end)}"
        )
    return Segment(start_s, end_s)


def get_extra(entry: Mapping[str, Any], known: Collection[str]) -> dict[str, str | float]:
    """Returns the numbers and texts under keys that the format does not define.

    Lists, objects, null and booleans are left out, because selections do not use them.
    """
    return {
        key: value
        for key, value in entry.items()
        if key not in known and (isinstance(value, str) or is_number(value))
    }


def get_qid(where: str, value: Any, otherwise: str) -> str:
    """Returns the id stated in the file (text or integer), or `otherwise` if there is none."""
    if value is None:
        return otherwise
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return get_name(where, value)


def without_extension(video: str, extensions: Sequence[str]) -> str:
    """Returns a video's id or path without its video file extension; other dots are kept."""
    stem, dot, extension = video.rpartition(".")
    if not (stem and dot):
        return video
    return stem if extension.lower() in _plain_extensions(tuple(extensions)) else video


@lru_cache(maxsize=64)
def _plain_extensions(extensions: tuple[str, ...]) -> frozenset[str]:
    return frozenset(extension.lower().lstrip(".") for extension in extensions)


class QueryIds:
    """Makes "video:index" ids; the index counts the file's queries on that video from 0.

    All queries in the file count, so that ids do not depend on which videos were found.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def next(self, video: str) -> str:
        index = self._counts[video]
        self._counts[video] += 1
        return f"{video}:{index}"
