"""Draws a filmstrip: frames over a time axis, with the predicted and the true segment below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tvg.core.interval import segment_iou
from tvg.plot.style import (
    INK,
    MUTED,
    PREDICTED_COLOUR,
    TRACK,
    TRUTH_COLOUR,
    add_text,
    clean_text,
    describe_segment,
    font_families,
    visible_part,
    wrap_text,
)
from tvg.types import Segment

# Inches. Rows are stacked from the top: title, caption, frames, bars, axis.
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 14.0, 1.15, 0.45, 0.30, 0.62
_TITLE_LINE, _CAPTION, _LANE, _GAP = 0.29, 0.40, 0.40, 0.10
_STRIP_HEIGHT = 0.90  # target; the actual height depends on the frames' aspect ratio
_MIN_FRAMES, _MAX_FRAMES = 4, 16


def _num_shown(num_frames: int, aspect: float) -> int:
    """Returns how many frames fill a strip of about _STRIP_HEIGHT; aspect = width / height."""
    fitting = round((_WIDTH - _LEFT - _RIGHT) / (_STRIP_HEIGHT * aspect))
    return max(1, min(num_frames, max(_MIN_FRAMES, min(_MAX_FRAMES, fitting))))


def _check(frames: Tensor, times_s: Any, duration_s: float) -> None:
    shape = tuple(frames.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[0] < 1 or "uint8" not in str(frames.dtype):
        raise ValueError(f"frames must be uint8 [T, 3, H, W], T >= 1: got {frames.dtype} {shape}")
    if len(times_s) != shape[0]:
        raise ValueError(f"expected one time per frame: got {len(times_s)} for {shape[0]} frames")
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s must be above 0 seconds: got {duration_s}")


def _draw_frames(axes: Axes, frames: Tensor, times_s: np.ndarray, duration_s: float) -> None:
    """Fills the axis with equal cells, each showing the frame nearest to the cell's middle."""
    num_shown = _num_shown(frames.shape[0], frames.shape[3] / frames.shape[2])
    cell_s = duration_s / num_shown
    for cell in range(num_shown):
        nearest = int(np.abs(times_s - (cell + 0.5) * cell_s).argmin())
        picture = np.asarray(frames[nearest]).transpose(1, 2, 0)
        extent = (cell * cell_s, (cell + 1) * cell_s, 0.0, 1.0)
        axes.imshow(picture, extent=extent, aspect="auto", interpolation="antialiased")
        if cell:
            axes.axvline(cell * cell_s, color="white", linewidth=1.5)
    axes.set(xlim=(0, duration_s), ylim=(0, 1))
    axes.axis("off")


def _draw_lane(axes: Axes, y: float, name: str, colour: str, segment: Segment | None) -> None:
    """Draws one row of the lower axis: a track, the segment's bar, its name and its times."""
    duration_s = axes.get_xlim()[1]
    axes.barh(y, duration_s, height=0.56, color=TRACK, zorder=1)
    text: dict[str, Any] = {"va": "center", "fontsize": 10, "fontfamily": font_families()}
    axes.annotate(
        name,
        (0, y),
        xytext=(-10, 0),
        textcoords="offset points",
        ha="right",
        color=colour,
        weight="bold",
        **text,
    )
    label = describe_segment(segment, duration_s)
    visible = visible_part(segment, duration_s)
    if visible is None:
        axes.text(duration_s / 2, y, label, ha="center", style="italic", color=MUTED, **text)
        return
    start_s, end_s = visible
    # An empty segment stays visible: at least two thousandths of the axis.
    shown_s = max(end_s - start_s, 0.002 * duration_s)
    axes.barh(y, shown_s, left=start_s, height=0.56, color=colour, zorder=2)
    if shown_s > 0.16 * duration_s:
        axes.text(start_s + shown_s / 2, y, label, ha="center", color="white", zorder=3, **text)
    elif end_s < 0.8 * duration_s:
        place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "zorder": 3}
        axes.annotate(label, (start_s + shown_s, y), color=INK, **place, **text)
    else:
        place = {"xytext": (-6, 0), "textcoords": "offset points", "zorder": 3, "ha": "right"}
        axes.annotate(label, (start_s, y), color=INK, **place, **text)


def _mark_segment(axes: Axes, segment: Segment | None, colour: str) -> None:
    """Outlines the part of the strip that the segment covers and fades the rest."""
    duration_s = axes.get_xlim()[1]
    visible = visible_part(segment, duration_s)
    if visible is None:
        return
    start_s, end_s = visible
    for left, right in ((0.0, start_s), (end_s, duration_s)):
        axes.axvspan(left, right, color="white", alpha=0.5, linewidth=0, zorder=3)
    width = max(end_s - start_s, 0.002 * duration_s)
    box = FancyBboxPatch((start_s, 0), width, 1, boxstyle="square,pad=0", fill=False, zorder=4)
    box.set(edgecolor=colour, linewidth=3, clip_on=False)
    axes.add_patch(box)


def draw_filmstrip(
    frames: Tensor,
    frame_times_s: Tensor | Sequence[float],
    *,
    duration_s: float,
    predicted: Segment | None,
    truth: Segment | None,
    query: str,
    title: str | None = None,
    time_label: str = "time (s)",
) -> Figure:
    """Draws evenly spaced frames of a clip over a time axis, with the segments below.

    Each frame is drawn above its time. The strip outlines the predicted segment, or the true one
    if no prediction is visible.

    Args:
        frames: uint8 [T, 3, H, W].
        frame_times_s: [T] seconds from the clip's start.
        duration_s: end of the time axis, which starts at 0.
        predicted: None if the answer has no segment; the picture then contains a note.
        truth: None if unknown; its row is then left out.
        query: the heading; it may contain any characters, also `$`.
        title: a short line below the heading, such as the video's name.
        time_label: label of the time axis; it should state if 0 is not the start of the file.

    Raises:
        ValueError: frames, times or duration cannot be drawn.
    """
    times_s = np.asarray(frame_times_s, dtype=np.float64)
    _check(frames, times_s, duration_s)
    lines = wrap_text(f"“{clean_text(query)}”", num_columns=96, max_lines=3)
    caption = clean_text(title) if title else ""
    is_scored = predicted is not None and truth is not None
    lanes = [("Predicted", PREDICTED_COLOUR, predicted)]
    if truth is not None:
        lanes.append(("Truth", TRUTH_COLOUR, truth))

    strip_width = _WIDTH - _LEFT - _RIGHT
    aspect = frames.shape[3] / frames.shape[2]
    strip_height = strip_width / _num_shown(frames.shape[0], aspect) / aspect
    strip_height = min(max(strip_height, 0.8), 2.6)
    heading = _TITLE_LINE * len(lines) + (_CAPTION if caption or is_scored else 0.12)
    height = _TOP + heading + strip_height + _GAP + _LANE * len(lanes) + _BOTTOM
    figure = Figure(figsize=(_WIDTH, height))

    def place(bottom: float, tall: float) -> Axes:
        box = (_LEFT / _WIDTH, bottom / height, strip_width / _WIDTH, tall / height)
        return figure.add_axes(box)

    left, top = _LEFT / _WIDTH, 1 - _TOP / height
    heading_style = {"fontsize": 15, "weight": "bold", "color": INK, "linespacing": 1.3}
    add_text(figure, left, top, "\n".join(lines), va="top", **heading_style)
    caption_y = top - (_TITLE_LINE * len(lines) + 0.05) / height
    add_text(figure, left, caption_y, caption, fontsize=11, color=MUTED, va="top")
    if is_scored:
        score = f"IoU {segment_iou(predicted, truth):.2f}"
        score_style = {"fontsize": 13, "weight": "bold", "color": INK, "ha": "right", "va": "top"}
        add_text(figure, 1 - _RIGHT / _WIDTH, caption_y, score, **score_style)

    strip = place(_BOTTOM + _LANE * len(lanes) + _GAP, strip_height)
    _draw_frames(strip, frames, times_s, duration_s)
    framed = predicted if visible_part(predicted, duration_s) else truth
    _mark_segment(strip, framed, PREDICTED_COLOUR if framed is predicted else TRUTH_COLOUR)

    bars = place(_BOTTOM, _LANE * len(lanes))
    bars.set(xlim=(0, duration_s), ylim=(-0.5, len(lanes) - 0.5), yticks=[])
    for y, (name, colour, segment) in enumerate(reversed(lanes)):
        _draw_lane(bars, y, name, colour, segment)
    bars.spines[["left", "right", "top"]].set_visible(False)
    bars.spines["bottom"].set_color(MUTED)
    bars.xaxis.set_major_locator(MaxNLocator(nbins=12, steps=[1, 2, 5, 10]))
    bars.tick_params(axis="x", colors=MUTED, labelsize=9)
    bars.set_xlabel(time_label, color=MUTED, fontsize=10)
    return figure
