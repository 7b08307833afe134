"""Draws the true and predicted segments of a few queries, one row per query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tvg.core.interval import segment_iou
from tvg.plot.style import (
    INK,
    MUTED,
    PREDICTED_COLOUR,
    TRACK,
    TRUTH_COLOUR,
    add_text,
    describe_segment,
    font_families,
    visible_part,
    wrap_text,
)
from tvg.types import Segment

# Inches. The query is left of the tracks, the clip's length and the IoU are right of them.
_WIDTH, _LEFT, _RIGHT, _ROW, _HEAD, _FOOT = 13.0, 3.9, 1.75, 0.62, 0.75, 0.15
_BAR = 0.25  # height of a bar; a row is 1 high


@dataclass(frozen=True, kw_only=True)
class TimelineRow:
    """One query with its true and predicted segments."""

    query: str
    duration_s: float
    predicted: Segment | None
    truth: Segment | None


def _draw_bar(
    axes: Axes, y: float, segment: Segment | None, duration_s: float, colour: str
) -> None:
    """Draws a track over the entire clip and the segment on it, in fractions of the duration."""
    axes.barh(y, 1.0, height=_BAR, color=TRACK, zorder=1)
    text: dict[str, Any] = {"va": "center", "fontsize": 7.5, "zorder": 3}
    text["fontfamily"] = font_families()
    label = describe_segment(segment, duration_s)
    visible = visible_part(segment, duration_s)
    if visible is None:
        axes.text(0.5, y, label, ha="center", style="italic", color=MUTED, **text)
        return
    start, end = (second / duration_s for second in visible)
    length = max(end - start, 0.003)
    axes.barh(y, length, left=start, height=_BAR, color=colour, zorder=2)
    if length > 0.17:
        axes.text(start + length / 2, y, label, ha="center", color="white", **text)
    elif end < 0.8:
        axes.text(start + length + 0.006, y, label, ha="left", color=INK, **text)
    else:
        axes.text(start - 0.006, y, label, ha="right", color=INK, **text)


def _draw_row(axes: Axes, y: float, row: TimelineRow) -> None:
    if not row.duration_s > 0:
        raise ValueError(f"duration_s must be above 0: got {row.duration_s} for {row.query!r}")
    if row.truth is not None:
        _draw_bar(axes, y - 0.15, row.truth, row.duration_s, TRUTH_COLOUR)
    _draw_bar(axes, y + 0.15, row.predicted, row.duration_s, PREDICTED_COLOUR)
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "clip_on": False}
    beside.update(annotation_clip=False, parse_math=False, fontfamily=font_families())
    query = "\n".join(wrap_text(row.query, num_columns=44, max_lines=2))
    axes.annotate(query, (0, y), xytext=(-12, 0), ha="right", color=INK, fontsize=9.5, **beside)
    length = f"{row.duration_s:.0f} s"
    axes.annotate(length, (1, y), xytext=(10, 0), color=MUTED, fontsize=8.5, **beside)
    if row.truth is not None:
        iou = f"IoU {segment_iou(row.predicted, row.truth):.2f}"
        beside.update(ha="right", color=INK, weight="bold", fontsize=10)
        axes.annotate(iou, (1, y), xytext=(100, 0), **beside)


def draw_timelines(rows: Sequence[TimelineRow], *, title: str | None = None) -> Figure:
    """Draws one row per query: the true segment, and below it the predicted segment.

    Each segment is drawn on a track that spans the entire clip, so all tracks are equally wide. The
    clip's length and the temporal IoU are shown to the right of the tracks. About twelve queries
    remain readable.

    Raises:
        ValueError: there is no row, or a row's duration is not above zero.
    """
    if not rows:
        raise ValueError("a timeline picture needs at least one query: got none")
    height = _HEAD + _ROW * len(rows) + _FOOT
    figure = Figure(figsize=(_WIDTH, height))
    width = (_WIDTH - _LEFT - _RIGHT) / _WIDTH
    box = (_LEFT / _WIDTH, _FOOT / height, width, _ROW * len(rows) / height)
    axes = figure.add_axes(box)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))  # the first row on top
    axes.axis("off")
    for y, row in enumerate(rows):
        _draw_row(axes, y, row)

    top = 1 - 0.28 / height
    heading = wrap_text(title or "", num_columns=60, max_lines=1)[0]
    style: dict[str, Any] = {"va": "top", "weight": "bold"}
    add_text(figure, 0.02, top, heading, fontsize=14, color=INK, **style)
    add_text(figure, 0.78, top, "Truth", fontsize=11, color=TRUTH_COLOUR, ha="right", **style)
    add_text(
        figure, 0.865, top, "Predicted", fontsize=11, color=PREDICTED_COLOUR, ha="right", **style
    )
    return figure
