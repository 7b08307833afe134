"""The rules for defective queries, the same for every format.

Dropped from training, kept in a benchmark: start >= end; start after the video's end; end before
its start; no sentence; several spans; a query that stood before (same video, window, sentence and
segment). Clamped for training, kept in a benchmark: end after the video's end; start before its
start. Dropped or fatal in both, as `on_missing` says: no video file. Repaired in both: a duration
of 0, which is none, and one that is longer than the window, which is the whole file's.

A benchmark's queries all count, since published scores count them. Anything else that does not fit
a format stops the reading.
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

VIDEO_MISSING = "video missing"  # the reason under which a missing video's queries are dropped

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
    """Turns a file's queries into examples, by the rules above, and counts what is met.

    Args:
        annotation_file: named in the report and in errors.
        queries: in the file's order. An id that stood before gets "#2", "#3" ... appended.
        video_dir: folder of the videos; None: only the annotations are read.
        extensions: tried in this order, in any case.
        on_missing: a video without a file stops the reading, once all is read, or is counted and
            its queries are left out.
        clamp_ends: cut segments (and hints) at the clip's ends: for training.
        drop_invalid: leave out what cannot be learnt from or stands twice: for training.

    Raises:
        ReadError: videos are missing and `on_missing` is "error", or no example is left.
        ValueError: the folder of videos cannot be listed, or `on_missing` is something else.
    """
    if on_missing not in ("error", "skip"):
        raise ValueError(f"on_missing must be 'error' or 'skip': got {on_missing!r}")
    path = Path(annotation_file)
    finder = VideoFinder(video_dir, extensions) if video_dir is not None else None
    report = ReadReport(annotation_file=path)
    inspector = _Inspector(report, clamp_ends=clamp_ends, drop_invalid=drop_invalid)
    examples: list[GroundingExample] = []
    with _no_garbage_collection():
        stated = list(queries)  # all: which file is whose depends on the ids of the others
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
    report.num_videos = len({file or video for video, file in files.items()})  # two may share one
    report.num_examples = len(examples)
    assert report.num_queries == report.num_examples + sum(report.dropped.values())
    if report.missing and on_missing == "error":
        assert finder is not None
        first = report.missing[0]
        raise ReadError(
            f"{path}: {len(report.missing)} of {len(files)} ids have no video file, the first is "
            f"{first!r}: looked for {finder.looked_for(first)} (on_missing='skip' leaves "
            f"such ids out)",
            report,
        )
    if not examples:
        raise ReadError(f"{path}: no example is left.\n{report}", report)
    return ReadResult(examples=examples, report=report)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Half of the time went into looking for cycles among records, which have none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Inspector:
    """Looks at one query after another; remembers ids and queries to tell repeated ones."""

    def __init__(self, report: ReadReport, *, clamp_ends: bool, drop_invalid: bool) -> None:
        self.report = report
        self.clamp_ends = clamp_ends
        self.drop_invalid = drop_invalid
        self._qids: set[str] = set()
        self._copies: dict[str, int] = {}  # stated id -> the last number that was appended to it
        self._seen: set[tuple[str | Path, Segment | None, str, Segment]] = set()

    def example(
        self, query: Query, video_path: Path | None, *, is_missing: bool
    ) -> GroundingExample | None:
        """Counts the defects of a query; returns its example, or None where it is dropped."""
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
            self.report.add("with an id that stood before", qid, "renamed")
        return qid

    def _with_clip_duration(self, query: Query, qid: str) -> Query:
        """Returns the query with the duration of what is shown, as far as it is stated."""
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
        if late_s <= 0 <= query.segment.start_s:  # inside, as most are
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
