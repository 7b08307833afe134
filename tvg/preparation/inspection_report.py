"""Formats the inspection of a dataset as JSON, a table and messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from tvg.core.printable import printable_line
from tvg.data.annotations import AnnotationSet, MixedSets
from tvg.data.files import VideoFinder
from tvg.preparation.inspection import Inspection

NUM_LINES = 20  # maximum number of unusable videos in messages; the report lists all


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Returns the report on one annotation file, or on several together.

    `queries` (as read) equals `kept` plus everything in `dropped`.
    """
    report = inspection.report
    return {
        "file": str(report.annotation_file),
        "videos": report.num_videos,
        "queries": report.num_queries,
        "kept": report.num_examples,
        "repaired": report.repaired,
        "dropped": report.dropped,
        "missing": report.missing,
        "unreadable": inspection.unreadable,
        "unusable_queries": report.unusable_queries,
        "defects": {
            name: {"count": d.count, "action": d.action, "examples": d.example_ids}
            for name, d in report.defects.items()
        },
        "late_ends": report.late_ends,
        "precut": inspection.num_precut,
        "duration_mismatch": inspection.num_other_duration,
        "variable_rate": len(inspection.variable_rate),
    }


def as_table(title: str, inspections: Sequence[Inspection]) -> Table:
    """Returns a table with one row per annotation file."""
    table = Table(title=escape(printable_line(title)), title_justify="left")
    for column in (
        "split",
        "videos",
        "queries",
        "kept",
        "repaired",
        "missing",
        "unreadable",
        "variable rate",
    ):
        table.add_column(column, justify="left" if column == "split" else "right")
    for inspection in inspections:
        report = inspection.report
        counts = (
            report.num_videos,
            report.num_queries,
            report.num_examples,
            sum(report.repaired.values()),
            len(report.missing),
            len(inspection.unreadable),
            len(inspection.variable_rate),
        )
        table.add_row(", ".join(inspection.splits), *(f"{count:,}" for count in counts))
    return table


def defect_lines(inspections: Sequence[Inspection]) -> list[str]:
    """Returns lines per file: one per kind of defect with its first ids, then drops and cuts."""
    lines = []
    for inspection in inspections:
        split = ", ".join(inspection.splits)
        for name, defect in inspection.report.defects.items():
            more = ", ..." if defect.count > len(defect.example_ids) else ""
            ids = ", ".join(defect.example_ids)
            lines.append(f"{split}: {defect.count:,} {name}, {defect.action}: {ids}{more}")
        dropped = inspection.report.dropped
        if dropped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
            lines.append(f"{split}: queries left out: {reasons}")
        if inspection.num_precut:
            lines.append(
                f"{split}: {inspection.num_precut:,} files are already cut to their window"
            )
    return lines


def problem_lines(
    missing: Mapping[str, str], unreadable: Mapping[str, str], queries: Mapping[str, str]
) -> list[str]:
    """Returns one line per video or query that cannot be used.

    Args:
        missing: video -> the file names that were tried.
        unreadable: file -> its problem.
        queries: id -> why the query cannot be used.
    """
    lines = [f"{video}: no video file; looked for {names}" for video, names in missing.items()]
    return lines + [f"{n}: {problem}" for n, problem in (*unreadable.items(), *queries.items())]


def shortened(lines: Sequence[str]) -> list[str]:
    """Returns the first `NUM_LINES` lines, and a line with the number of remaining ones."""
    more = len(lines) - NUM_LINES
    return [*lines[:NUM_LINES], *([f"... and {more:,} more"] if more > 0 else [])]


def missing_files(source: AnnotationSet | MixedSets, missing: Sequence[str]) -> dict[str, str]:
    """Returns, for each missing video, the file names that were tried."""
    if isinstance(source, AnnotationSet):
        if source.video_dir is None:
            return {}
        finder = VideoFinder(source.video_dir, source.extensions)
        return {video: finder.looked_for(video) for video in missing}
    found: dict[str, str] = {}
    for name, annotation_set in source.sets.items():
        own = [video.removeprefix(f"{name}/") for video in missing if video.startswith(f"{name}/")]
        looked_for = missing_files(annotation_set, own)
        found |= {f"{name}/{video}": names for video, names in looked_for.items()}
    return found


def size_text(num_bytes: int) -> str:
    """Formats a number of bytes, e.g. `1.50 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} B"
