"""Defines what reading an annotation file returns: queries, examples and a report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tvg.types import GroundingExample, Segment

NUM_EXAMPLE_IDS = 5  # ids that a report keeps per defect
LATE_ENDS_S = (0.0, 1e-6, 0.5, 1.0)  # thresholds for segment ends after the video's end


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One query as in the file; times, except those of `window`, count from the window's start."""

    qid: str
    video: str
    sentence: str  # stripped
    segment: Segment
    duration_s: float | None  # of the window, if there is one; a stated 0 is kept; None: not stated
    window: Segment | None = None  # part of the file to show, in seconds of the file
    difficulty: float | None = None  # 100 * IoU of a model's earlier prediction
    prediction: Segment | None = None  # that prediction
    hint: Segment | None = None  # coarse label for supervised training; None: use `segment`
    extra: Mapping[str, str | float] = field(default_factory=dict)
    num_spans: int = 1  # number of segments; `segment` is the first
    raw_sentence: str | None = None  # with the file's outer whitespace; None: not kept


@dataclass(kw_only=True)
class Defect:
    """One kind of defect: its count, the action taken, and the first ids."""

    action: str  # "dropped", "clamped", "skipped", "renamed", "kept", or other words
    count: int = 0
    example_ids: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class ReadReport:
    """Defects and counts of one file, or of the files of several sets.

    Every query is inspected, even if it is dropped, and a query with two defects is counted under
    both. `num_queries == num_examples + sum(dropped.values())`.
    """

    annotation_file: Path | str  # for mixed sets: all files, joined by " + "
    num_videos: int = 0
    num_queries: int = 0  # as read
    num_examples: int = 0  # the remaining examples
    defects: dict[str, Defect] = field(default_factory=dict)
    # seconds after the video's end -> queries that end later than that
    late_ends: dict[str, int] = field(
        default_factory=lambda: {f"{late_s:g}": 0 for late_s in LATE_ENDS_S}
    )
    repaired: dict[str, int] = field(default_factory=dict)  # reason -> repaired queries
    # ids of the repaired queries; needed because later steps may drop some of them
    repaired_ids: dict[str, set[str]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> queries, each counted once
    missing: list[str] = field(default_factory=list)  # videos without a file, each once
    unusable_queries: dict[str, str] = field(default_factory=dict)  # qid -> why it cannot be used

    def add(self, name: str, qid: str, action: str) -> None:
        """Counts a defect."""
        defect = self.defects.setdefault(name, Defect(action=action))
        defect.count += 1
        if len(defect.example_ids) < NUM_EXAMPLE_IDS:
            defect.example_ids.append(qid)

    def leave_out(self, reason: str, qids: Collection[str]) -> None:
        """Counts kept queries as dropped, and no longer as repaired.

        Args:
            reason: a reason that is not in `dropped` yet.
            qids: ids of the queries, each once.
        """
        if not qids:
            return
        self.dropped[reason] = len(qids)
        self.num_examples -= len(qids)
        for repair, ids in list(self.repaired_ids.items()):
            ids -= set(qids)
            self.repaired[repair] = len(ids)
            if not ids:
                del self.repaired[repair], self.repaired_ids[repair]

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
    """The examples of one file, in file order, and the report on reading it."""

    examples: list[GroundingExample]
    report: ReadReport


class ReadError(ValueError):
    """Videos are missing or no example is left; `report` contains the defects found so far."""

    def __init__(self, message: str, report: ReadReport) -> None:
        super().__init__(message)
        self.report = report


def merge_reports(reports: Mapping[str, ReadReport]) -> ReadReport:
    """Returns the sum of several sets' reports; ids become "set/id"."""
    total = ReadReport(annotation_file=" + ".join(str(r.annotation_file) for r in reports.values()))
    for name, report in reports.items():
        total.num_videos += report.num_videos
        total.num_queries += report.num_queries
        total.num_examples += report.num_examples
        total.missing += [f"{name}/{video}" for video in report.missing]
        total.unusable_queries |= {f"{name}/{q}": p for q, p in report.unusable_queries.items()}
        for counts, more in (
            (total.late_ends, report.late_ends),
            (total.repaired, report.repaired),
            (total.dropped, report.dropped),
        ):
            for reason, count in more.items():
                counts[reason] = counts.get(reason, 0) + count
        for reason, ids in report.repaired_ids.items():
            named = total.repaired_ids.setdefault(reason, set())
            named |= {f"{name}/{qid}" for qid in ids}
        for what, defect in report.defects.items():
            merged = total.defects.setdefault(what, Defect(action=defect.action))
            merged.count += defect.count
            merged.example_ids += [f"{name}/{qid}" for qid in defect.example_ids]
            del merged.example_ids[NUM_EXAMPLE_IDS:]
    return total
