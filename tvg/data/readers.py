"""From annotation files to grounding examples: one reader per file format, one kind of result.

A reader is a function from a file to `ReadResult`. Defects known from published files (ends beyond
the duration, reversed segments, ids without a video) are counted and handled as asked for; anything
else that does not fit the format stops the reading with a ValueError naming the file, the id and
what was found.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tvg.data.files import VideoFinder, load_json_object, shown
from tvg.types import GroundingExample, Segment

NUM_EXAMPLE_IDS = 5  # that a report keeps per defect


@dataclass(kw_only=True)
class Defect:
    """One kind of defect: how often it was met, what was done, and the first ids."""

    action: str  # "dropped", "clamped", "skipped" or "kept"
    count: int = 0
    example_ids: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class ReadReport:
    """What a reader met in one file; a query with two defects is counted under both."""

    annotation_file: Path
    num_videos: int = 0
    num_queries: int = 0
    num_examples: int = 0  # what is left
    defects: dict[str, Defect] = field(default_factory=dict)

    def add(self, name: str, qid: str, action: str) -> None:
        defect = self.defects.setdefault(name, Defect(action=action))
        defect.count += 1
        if len(defect.example_ids) < NUM_EXAMPLE_IDS:
            defect.example_ids.append(qid)

    def __str__(self) -> str:
        lines = [
            f"{self.annotation_file}: {self.num_examples} examples from {self.num_queries} queries "
            f"on {self.num_videos} videos"
        ]
        for name, defect in self.defects.items():
            more = ", ..." if defect.count > len(defect.example_ids) else ""
            lines.append(
                f"  {defect.count} {name}, {defect.action}: {', '.join(defect.example_ids)}{more}"
            )
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """The examples of one file, in its order, and what was met on the way."""

    examples: list[GroundingExample]
    report: ReadReport


def read_charades(
    annotation_file: str | os.PathLike[str],
    video_dir: str | os.PathLike[str] | None,
    *,
    extensions: Sequence[str] = ("mp4", "mkv", "webm", "avi"),
    on_missing: Literal["error", "skip"] = "error",
    clamp_ends: bool,
    drop_invalid: bool,
) -> ReadResult:
    """Reads {video_id: {"duration", "timestamps": [[s, e], ...], "sentences": [...]}} JSON.

    That is the shape of Charades-STA and ActivityNet Captions files. "video_duration" may stand for
    "duration", or neither; an optional "hints" holds a coarse [s, e], or null, beside each of
    "timestamps". A query's id is "video_id:index", the index counting the file's own list.

    Args:
        annotation_file: the JSON file.
        video_dir: folder of the videos, named by id; None: only the annotations are read.
        extensions: tried in this order, in any case.
        on_missing: an id without a video file stops the reading, or is counted and left out.
        clamp_ends: cut segments (and hints) at the clip's ends: for training.
        drop_invalid: leave out queries that cannot be learnt from (segment reversed, empty or
            behind the video's end, no sentence): for training. A benchmark's queries all count.

    Raises:
        ValueError: the file is missing, no JSON, of another shape, or leaves no example.
    """
    if on_missing not in ("error", "skip"):
        raise ValueError(f"on_missing must be 'error' or 'skip': got {on_missing!r}")
    path = Path(annotation_file)
    entries = load_json_object(path)
    finder = VideoFinder(video_dir, extensions) if video_dir is not None else None
    report = ReadReport(annotation_file=path)
    examples: list[GroundingExample] = []
    missing: list[str] = []
    for video_id, entry in entries.items():
        queries = list(_charades_queries(path, video_id, entry))
        report.num_videos += 1
        report.num_queries += len(queries)
        video_path = finder.find(video_id) if finder is not None else None
        if finder is not None and video_path is None:
            report.add("without a video file", video_id, "skipped")
            missing.append(video_id)
            continue
        for query in queries:
            if _count_defects(query, report, clamp_ends=clamp_ends, drop_invalid=drop_invalid):
                examples.append(_example(query, video_path, clamp_ends=clamp_ends))
    if missing and on_missing == "error":
        assert finder is not None
        raise ValueError(
            f"{path}: {len(missing)} of {len(entries)} ids have no video file, the first is "
            f"{missing[0]!r}: looked for {finder.looked_for(missing[0])} (on_missing='skip' leaves "
            f"such ids out)"
        )
    report.num_examples = len(examples)
    if not examples:
        raise ValueError(f"{path}: no example is left.\n{report}")
    return ReadResult(examples=examples, report=report)


@dataclass(frozen=True, kw_only=True)
class _Query:
    """One query as the file states it."""

    qid: str
    video_id: str
    sentence: str
    segment: Segment
    hint: Segment | None
    duration_s: float | None


def _charades_queries(path: Path, video_id: str, entry: Any) -> Iterator[_Query]:
    where = f"{path}: id {video_id!r}"
    duration_s, lists = _charades_lists(where, entry)
    for index in range(len(lists["sentences"])):
        sentence = lists["sentences"][index]
        if not isinstance(sentence, str):
            raise ValueError(f"{where}: sentences[{index}]: expected a text, got {shown(sentence)}")
        hint = None
        if "hints" in lists and lists["hints"][index] is not None:
            hint = _segment(f"{where}: hints[{index}]", lists["hints"][index])
            if not hint.start_s < min(hint.end_s, math.inf if duration_s is None else duration_s):
                raise ValueError(
                    f"{where}: hints[{index}]: expected start < end, starting before the video's "
                    f"end, got {list(hint)}"
                )
        yield _Query(
            qid=f"{video_id}:{index}",
            video_id=video_id,
            sentence=sentence.strip(),
            segment=_segment(f"{where}: timestamps[{index}]", lists["timestamps"][index]),
            hint=hint,
            duration_s=duration_s,
        )


def _charades_lists(where: str, entry: Any) -> tuple[float | None, dict[str, list[Any]]]:
    """Returns the duration and the lists of one video, of equal lengths, by name."""
    if not isinstance(entry, dict):
        raise ValueError(
            f"{where}: expected an object with duration, timestamps and sentences, "
            f"got {shown(entry)}"
        )
    duration = entry.get("duration", entry.get("video_duration"))
    if duration is not None and not (_is_number(duration) and duration > 0):
        raise ValueError(
            f"{where}: expected a positive number of seconds as duration, got {shown(duration)}"
        )
    lists: dict[str, list[Any]] = {}
    for name in ("timestamps", "sentences", "hints"):
        value = entry.get(name)
        if name == "hints" and value is None:
            continue
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list as {name}, got {shown(value)}")
        lists[name] = value
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"{where}: expected lists of one length, got {counts}")
    return None if duration is None else float(duration), lists


def _segment(where: str, value: Any) -> Segment:
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))):
        raise ValueError(f"{where}: expected [start, end] in seconds, got {shown(value)}")
    return Segment(float(value[0]), float(value[1]))


def _count_defects(
    query: _Query, report: ReadReport, *, clamp_ends: bool, drop_invalid: bool
) -> bool:
    """Counts what is wrong with a query; returns whether it is kept."""
    start_s, end_s = query.segment
    length_s = math.inf if query.duration_s is None else query.duration_s
    unusable = {
        "with start >= end": start_s >= end_s,
        "starting behind the video's end": start_s >= length_s,
        "ending before the video's start": end_s <= 0 and start_s < end_s,
        "without a sentence": not query.sentence,
    }
    for name, is_so in unusable.items():
        if is_so:
            report.add(name, query.qid, "dropped" if drop_invalid else "kept")
    outside = {
        "ending behind the video's end": end_s > length_s,
        "starting before the video's start": start_s < 0,
    }
    for name, is_so in outside.items():
        if is_so:
            report.add(name, query.qid, "clamped" if clamp_ends else "kept")
    return not (drop_invalid and any(unusable.values()))


def _example(query: _Query, video_path: Path | None, *, clamp_ends: bool) -> GroundingExample:
    def clamp(segment: Segment) -> Segment:
        if not clamp_ends:
            return segment
        length_s = math.inf if query.duration_s is None else query.duration_s
        return Segment(max(0.0, segment.start_s), min(segment.end_s, length_s))

    return GroundingExample(
        qid=query.qid,
        video=query.video_id,
        video_path=video_path,
        query=query.sentence,
        segment=clamp(query.segment),
        duration_s=query.duration_s,
        hint=clamp(query.hint) if query.hint is not None else None,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
