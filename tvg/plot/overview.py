"""Draws an overview of a dataset: histograms of its durations, segments and queries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from tvg.plot.style import INK, MUTED, TRACK, TRUTH_COLOUR, add_text, font_families, wrap_text
from tvg.types import GroundingExample, Segment

_WIDTH, _HEIGHT = 12.0, 8.2  # inches
_MAX_BINS = 40
_LABEL: dict[str, Any] = {"color": MUTED, "fontsize": 10, "loc": "left"}
_SHOWN_SHARE = 0.995  # share of values to show; a few outliers would squeeze the bars of all others


def draw_overview(
    *,
    title: str,
    durations_s: Sequence[float],
    segments: Sequence[tuple[Segment, float | None]],
    queries_per_video: Sequence[int],
) -> Figure:
    """Draws four histograms with their medians: durations, lengths, centres, queries per video.

    Each panel states how many values are not shown because they are beyond its axis or unknown.

    Args:
        title: the heading, such as the set's name and split.
        durations_s: duration of each clip; NaN if unknown.
        segments: for each query with a known truth, its segment and its clip's duration (None if
            unknown).
        queries_per_video: number of queries of each video.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    heading = wrap_text(title, num_columns=70, max_lines=1)[0]
    style: dict[str, Any] = {"va": "top"}
    add_text(figure, 0.065, 0.97, heading, fontsize=16, color=INK, weight="bold", **style)
    counts = f"{len(queries_per_video):,} videos,  {sum(queries_per_video):,} queries"
    add_text(figure, 0.065, 0.925, counts, fontsize=11, color=MUTED, **style)
    panels = figure.subplots(2, 2).flat
    figure.subplots_adjust(
        left=0.065, right=0.975, top=0.82, bottom=0.075, hspace=0.48, wspace=0.17
    )

    lengths_s = [segment.length_s for segment, _ in segments]
    centres = [_relative_centre(segment, duration_s) for segment, duration_s in segments]
    _draw_seconds(next(panels), "Video durations", "videos", durations_s)
    _draw_seconds(next(panels), "Segment lengths", "queries", lengths_s)
    _draw_centres(next(panels), centres)
    _draw_counts(next(panels), queries_per_video)
    return figure


def draw_overview_of(examples: Sequence[GroundingExample], *, title: str) -> Figure:
    """Draws the overview of examples; each window of a video counts as one clip."""
    durations_s = {
        (example.video, example.window): math.nan
        if example.duration_s is None
        else example.duration_s
        for example in examples
    }
    return draw_overview(
        title=title,
        durations_s=list(durations_s.values()),
        segments=[(e.segment, e.duration_s) for e in examples if e.segment is not None],
        queries_per_video=list(Counter(example.video for example in examples).values()),
    )


def _relative_centre(segment: Segment, duration_s: float | None) -> float:
    if duration_s is None or not duration_s > 0:
        return math.nan
    return (segment.start_s + segment.end_s) / 2 / duration_s


def _draw_seconds(axes: Axes, name: str, counted: str, values: Sequence[float]) -> None:
    """Draws a histogram of seconds, from 0 up to nearly the largest value."""
    found = np.asarray(values, dtype=np.float64)
    usable = found[found >= 0]  # also drops NaN
    finite = usable[np.isfinite(usable)]
    last = float(np.quantile(finite, _SHOWN_SHARE, method="higher")) if finite.size else 1.0
    width = _bin_width(last)
    end = width * (math.floor(last / width) + 1)
    edges = np.arange(0, end + width / 2, width)
    axes.set(xlim=(0, end))
    notes = {
        f"of {end:g} s or more": int((usable >= end).sum()),
        "end before their start": int((found < 0).sum()),
        "unknown": int(np.isnan(found).sum()),
    }
    _draw(axes, name, counted, finite[finite < end], edges, notes)
    axes.set_xlabel("seconds", **_LABEL)
    _mark_median(axes, finite, "{:.1f} s")


def _draw_centres(axes: Axes, centres: Sequence[float]) -> None:
    found = np.asarray(centres, dtype=np.float64)
    inside = found[(found >= 0) & (found <= 1)]
    axes.set(xlim=(0, 1))
    num_unknown = int(np.isnan(found).sum())
    notes = {
        "outside their video": found.size - inside.size - num_unknown,
        "without a known duration": num_unknown,
    }
    _draw(axes, "Segment centres", "queries", inside, np.linspace(0, 1, 21), notes)
    axes.set_xlabel("share of the duration", **_LABEL)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    _mark_median(axes, found[np.isfinite(found)], "{:.0%}")


def _draw_counts(axes: Axes, counts: Sequence[int]) -> None:
    """Draws a histogram of integers: one bar per number, or per several if there are many."""
    found = np.asarray(counts, dtype=np.float64)
    last = float(np.quantile(found, _SHOWN_SHARE, method="higher")) if found.size else 1.0
    width = max(1.0, _bin_width(last))
    end = width * math.ceil(max(last, 5) / width)
    edges = np.arange(0.5, end + 0.5 + width / 2, width)
    axes.set(xlim=(0.5, end + 0.5))
    notes = {f"with more than {end:g}": int((found > end).sum())}
    _draw(axes, "Queries per video", "videos", found[found <= end], edges, notes)
    axes.set_xlabel("queries", **_LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True))
    _mark_median(axes, found, "{:g}")


def _bin_width(end: float) -> float:
    """Returns the smallest of ..., 0.2, 0.5, 1, 2, 5, 10, ... that needs at most _MAX_BINS bins."""
    least = max(end, 0.1) / _MAX_BINS
    scale = 10.0 ** math.floor(math.log10(least))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= least * (1 - 1e-9))


def _draw(
    axes: Axes,
    name: str,
    counted: str,
    values: NDArray[np.float64],
    edges: NDArray[np.float64],
    notes: dict[str, int],
) -> None:
    """Draws one panel: bars, heading, and a note about values that are not shown."""
    heights, _ = np.histogram(values, edges)
    widths = np.diff(edges)
    axes.bar(edges[:-1], heights, width=widths, align="edge", color=TRUTH_COLOUR, zorder=2)
    for edge, height in zip(edges[1:-1], np.minimum(heights[:-1], heights[1:]), strict=True):
        axes.plot([edge, edge], [0, height], color="white", linewidth=0.6, zorder=3)
    axes.set_ylim(0, max(1, heights.max()) * 1.12)
    beside: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    beside.update(annotation_clip=False, fontfamily=font_families())
    axes.annotate(name, (0, 1), xytext=(0, 24), color=INK, fontsize=12, weight="bold", **beside)
    missing = ",  ".join(f"{count:,} {what}" for what, count in notes.items() if count)
    if missing:
        text = f"not shown: {missing}"
        below: dict[str, Any] = {"xytext": (0, -20), "ha": "right", "va": "top"}
        axes.annotate(text, (1, 0), color=MUTED, fontsize=9, **below, **beside)
    if not heights.any():
        middle: dict[str, Any] = {"ha": "center", "va": "center", "style": "italic", "color": MUTED}
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, **middle)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=TRACK, linewidth=1)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.tick_params(axis="x", length=3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.set_ylabel(counted, color=MUTED, fontsize=10)


def _mark_median(axes: Axes, values: NDArray[np.float64], form: str) -> None:
    """Draws the median as a dashed line, with its value above the panel."""
    if not values.size:
        return
    low, high = axes.get_xlim()
    median = float(np.median(values))
    place = min(max(median, low), high)
    axes.axvline(place, color=INK, linewidth=1.3, linestyle=(0, (4, 3)), zorder=4)
    side = {0: "left", 1: "center", 2: "right"}[min(2, int((place - low) / (high - low) * 3))]
    axes.annotate(
        f"median {form.format(median)}",
        (place, 1),
        xycoords=("data", "axes fraction"),
        xytext=({"left": -3, "center": 0, "right": 3}[side], 4),
        textcoords="offset points",
        ha=side,
        color=INK,
        fontsize=9.5,
        fontfamily=font_families(),
        annotation_clip=False,
    )
