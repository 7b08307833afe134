"""Applies the rules for defective queries, which are the same for every format.

- Dropped for training, kept in a benchmark: start >= end; start after the video's end; end before
  the video's start; no sentence; several spans; a repeated query (same video, window, sentence and
  segment).
- Clamped for training, kept in a benchmark: end after the video's end; start before the video's
  start.
- Dropped or an error in both, depending on `on_missing`: no video file.
- Repaired in both: a duration of 0 counts as not stated. A duration longer than the window is the
  duration of the entire file and is cut to the window's length.

A benchmark keeps all queries, because published scores count them. Any other deviation from a
format raises an error.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tvg.data.files import VideoFinder
from tvg.data.readers.fields import clip_duration
from tvg.data.readers.record import LATE_ENDS_S, Query, ReadError, ReadReport, ReadResult
from tvg.types import GroundingExample, Segment

VIDEO_MISSING = "video missing"  # why queries of a missing video are dropped

_LATE = "ending after the video's end"
_EARLY = "starting before the video's start"
_REPEATED = "repeated word for word"
_NO_DURATION = "with a duration of 0"
_FILE_DURATION = "with a duration longer than the window"
_LATE_ENDS = [(late_s, f"{late_s:g}") for late_s in LATE_ENDS_S]


def read_queries(
    annotation_file: str | os.PathLike[str],
    queries: Iterable[Query],
    video_dir: str | os.PathLike[str] | None,
    *,
    extensions: Sequence[str],
    on_missing: Literal["error", "skip"],
    clamp_ends: bool,
    drop_invalid: bool,
) -> ReadResult:
    """Turns a file's queries into examples by the rules above, and counts defects.

    Args:
        annotation_file: named in the report and in errors.
        queries: the queries in file order. A repeated id gets "#2", "#3" ... appended.
        video_dir: folder of the videos; None reads only the annotations.
        extensions: extensions of video files, tried in this order, in any letter case.
        on_missing: "error" raises for videos without a file, after all queries are read; "skip"
            counts these videos and drops their queries.
        clamp_ends: cut segments (and hints) at the clip's ends, for training.
        drop_invalid: drop unusable and repeated queries, for training.

    Raises:
        ReadError: videos are missing and `on_missing` is "error", or no example is left.
        ValueError: the video folder cannot be listed, or `on_missing` has another value.
    """
    if on_missing not in ("error", "skip"):
        raise ValueError(f"on_missing must be 'error' or 'skip': got {on_missing!r}")
    path = Path(annotation_file)
    finder = VideoFinder(video_dir, extensions) if video_dir is not None else None
    report = ReadReport(annotation_file=path)
    inspector = _Inspector(report, clamp_ends=clamp_ends, drop_invalid=drop_invalid)
    examples: list[GroundingExample] = []
    with _no_garbage_collection():
        stated = list(queries)  # all first: which file an id gets depends on the other ids
        for query in stated:
            if not (math.isfinite(query.segment.start_s) and math.isfinite(query.segment.end_s)):
                raise ValueError(
                    f"{path}: {query.qid}: expected a segment in finite seconds, got "
                    f"{list(query.segment)}"
                )
        videos = dict.fromkeys(query.video for query in stated)
        files = finder.find_all(videos) if finder is not None else dict.fromkeys(videos)
        if finder is not None:
            report.missing = [video for video, file in files.items() if file is None]
        for video in report.missing:
            report.add("without a video file", video, "skipped")
        for query in stated:
            file = files[query.video]
            is_missing = finder is not None and file is None
            example = inspector.example(query, file, is_missing=is_missing)
            if example is not None:
                examples.append(example)
    report.num_queries = len(stated)
    # Two ids may share one file.
    report.num_videos = len({file or video for video, file in files.items()})
    report.num_examples = len(examples)
    assert report.num_queries == report.num_examples + sum(report.dropped.values())
    if report.missing and on_missing == "error":
        assert finder is not None
        first = report.missing[0]
        raise ReadError(
            f"{path}: {len(report.missing)} of {len(files)} ids have no video file, the first is "
            f"{first!r}: looked for {finder.looked_for(first)} (on_missing='skip' leaves "
            f"these ids out)",
            report,
        )
    if not examples:
        raise ReadError(f"{path}: no example is left.\n{report}", report)
    return ReadResult(examples=examples, report=report)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disables garbage collection, which took half of the time and finds no cycles in records."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Inspector:
    """Inspects queries one by one; remembers ids and queries to detect repetitions."""

    def __init__(self, report: ReadReport, *, clamp_ends: bool, drop_invalid: bool) -> None:
        self.report = report
        self.clamp_ends = clamp_ends
        self.drop_invalid = drop_invalid
        self._qids: set[str] = set()
        self._copies: dict[str, int] = {}  # stated id -> last number appended to it
        self._seen: set[tuple[str | Path, Segment | None, str, Segment]] = set()

    def example(
        self, query: Query, video_path: Path | None, *, is_missing: bool
    ) -> GroundingExample | None:
        """Counts the defects of a query; returns its example, or None if it is dropped."""
        qid = self._unique(query.qid)
        query = self._with_clip_duration(query, qid)
        reasons = [VIDEO_MISSING] if is_missing else []
        reasons += self._drop_reasons(query, qid, video_path or query.video)
        repairs = self._repairs(query, qid)
        if reasons:
            self.report.dropped[reasons[0]] = self.report.dropped.get(reasons[0], 0) + 1
            return None
        for name in repairs:
            self.report.repaired[name] = self.report.repaired.get(name, 0) + 1
            self.report.repaired_ids.setdefault(name, set()).add(qid)
        return self._build(query, qid, video_path)

    def _unique(self, stated: str) -> str:
        qid = stated
        while qid in self._qids:
            self._copies[stated] = self._copies.get(stated, 1) + 1
            qid = f"{stated}#{self._copies[stated]}"
        self._qids.add(qid)
        if qid != stated:
            self.report.add("with a repeated id", qid, "renamed")
        return qid

    def _with_clip_duration(self, query: Query, qid: str) -> Query:
        """Returns the query with the duration of the clip, if the duration is known."""
        duration_s = clip_duration(query.duration_s, query.window)
        if duration_s == query.duration_s:
            return query
        if query.duration_s == 0:
            self.report.add(_NO_DURATION, qid, "taken as not stated")
        elif query.duration_s is not None:
            self.report.add(_FILE_DURATION, qid, "cut to the window's length")
        return replace(query, duration_s=duration_s)

    def _drop_reasons(self, query: Query, qid: str, file: str | Path) -> list[str]:
        start_s, end_s = query.segment
        key = (file, query.window, query.sentence, query.segment)
        unusable = (
            ("with start >= end", start_s >= end_s),
            ("starting after the video's end", start_s >= _length_s(query)),
            ("ending before the video's start", end_s <= 0 and start_s < end_s),
            ("without a sentence", not query.sentence),
            ("with several spans", query.num_spans > 1),
            (_REPEATED, key in self._seen),
        )
        self._seen.add(key)
        found = [name for name, is_so in unusable if is_so]
        for name in found:
            self.report.add(name, qid, "dropped" if self.drop_invalid else "kept")
        return found if self.drop_invalid else []

    def _repairs(self, query: Query, qid: str) -> list[str]:
        late_s = query.segment.end_s - _length_s(query)
        if late_s <= 0 <= query.segment.start_s:  # inside, the usual case
            return []
        for threshold_s, name in _LATE_ENDS:
            if late_s > threshold_s:
                self.report.late_ends[name] += 1
        outside = {_LATE: late_s > 0, _EARLY: query.segment.start_s < 0}
        found = [name for name, is_so in outside.items() if is_so]
        for name in found:
            self.report.add(name, qid, "clamped" if self.clamp_ends else "kept")
        return found if self.clamp_ends else []

    def _build(self, query: Query, qid: str, video_path: Path | None) -> GroundingExample:
        def clamp(segment: Segment) -> Segment:
            length_s = _length_s(query)
            if not self.clamp_ends or (segment.start_s >= 0 and segment.end_s <= length_s):
                return segment
            return Segment(max(0.0, segment.start_s), min(segment.end_s, length_s))

        return GroundingExample(
            qid=qid,
            video=query.video,
            video_path=video_path,
            query=query.sentence,
            raw_query=None if query.raw_sentence == query.sentence else query.raw_sentence,
            segment=clamp(query.segment),
            duration_s=query.duration_s,
            window=query.window,
            difficulty=query.difficulty,
            prediction=query.prediction,
            hint=clamp(query.hint) if query.hint is not None else None,
            extra=query.extra,
        )


def _length_s(query: Query) -> float:
    return math.inf if query.duration_s is None else query.duration_s
