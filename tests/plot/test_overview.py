"""Tests that the overview counts every value once: in a bar or in a note beside the axis."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from tvg.plot.overview import draw_overview, draw_overview_of
from tvg.plot.save import save_figure
from tvg.plot.style import TRUTH_COLOUR
from tvg.types import GroundingExample, Segment

DURATIONS, LENGTHS, CENTRES, COUNTS = range(4)


def bars(figure: Figure, panel: int) -> dict[tuple[float, float], int]:
    """Returns heights of a panel's non-empty bars by (left, right)."""
    found = {}
    for patch in figure.axes[panel].patches:
        if isinstance(patch, Rectangle) and to_hex(patch.get_facecolor()).upper() == TRUTH_COLOUR:
            left, right = patch.get_x(), patch.get_x() + patch.get_width()
            if patch.get_height():
                found[round(left, 6), round(right, 6)] = int(patch.get_height())
    return found


def texts(figure: Figure, panel: int | None = None) -> list[str]:
    where = figure if panel is None else figure.axes[panel]
    return [text.get_text() for text in where.findobj(Text) if text.get_text()]


def median_line(figure: Figure, panel: int) -> float:
    (line,) = [line for line in figure.axes[panel].lines if line.get_linestyle() == "--"]
    return float(line.get_xdata()[0])


def overview(**changes: Any) -> Figure:
    arguments: dict[str, Any] = {
        "title": "charades, train",
        "durations_s": [10.0, 20.0, 30.5],
        "segments": [(Segment(1, 3), 10.0), (Segment(2, 4.5), 10.0), (Segment(0, 20), 20.0)],
        "queries_per_video": [2, 1, 4],
    }
    return draw_overview(**arguments | changes)


def test_bars_by_hand():
    figure = overview()
    # 30.5 s in at most 40 bars gives bars of 1 s.
    assert bars(figure, DURATIONS) == {(10, 11): 1, (20, 21): 1, (30, 31): 1}
    # 20 s gives 40 bars of 0.5 s. The lengths are 2, 2.5 and 20.
    assert bars(figure, LENGTHS) == {(2, 2.5): 1, (2.5, 3): 1, (20, 20.5): 1}
    # The centres are 2 of 10, 3.25 of 10 and 10 of 20, in bars of 5 %.
    assert bars(figure, CENTRES) == {(0.2, 0.25): 1, (0.3, 0.35): 1, (0.5, 0.55): 1}
    assert bars(figure, COUNTS) == {(0.5, 1.5): 1, (1.5, 2.5): 1, (3.5, 4.5): 1}
    assert not [text for text in texts(figure) if "not shown" in text]
    assert {"charades, train", "3 videos,  7 queries"} <= set(texts(figure))


def test_medians_by_hand():
    figure = overview()
    for panel, median, label in (
        (DURATIONS, 20.0, "median 20.0 s"),
        (LENGTHS, 2.5, "median 2.5 s"),
        (CENTRES, 0.325, "median 32%"),
        (COUNTS, 2.0, "median 2"),
    ):
        assert median_line(figure, panel) == pytest.approx(median)
        assert label in texts(figure, panel)


def test_values_outside_the_axes_are_counted():
    segments = [(Segment(n / 100, n / 100 + 5), 10.0) for n in range(399)]
    odd = [
        (Segment(5, 3), 10.0),  # its centre, 4 of 10 s, is shown
        (Segment(0, 900), 10.0),
        (Segment(0, 1000), 10.0),
        (Segment(1, 2), None),
        (Segment(1, 2), 0.0),
        (Segment(-3, 2), 10.0),
        (Segment(math.nan, 2), 10.0),
    ]
    figure = overview(
        durations_s=[30.0] * 500 + [9000.0, math.nan, math.inf],
        segments=segments + odd,
        queries_per_video=[1] * 500 + [300],
    )
    assert "not shown: 2 of 31 s or more,  1 unknown" in texts(figure, DURATIONS)
    # Bars are 0.2 s wide; 5 s is in the bar that starts there.
    assert "not shown: 2 of 5.2 s or more,  1 end before their start,  1 unknown" in texts(
        figure, LENGTHS
    )
    note = "not shown: 3 outside their video,  3 without a known duration"
    assert note in texts(figure, CENTRES)
    assert "not shown: 1 with more than 5" in texts(figure, COUNTS)
    shown = [sum(bars(figure, panel).values()) for panel in range(4)]
    assert shown == [500, 402, 400, 500]
    assert median_line(figure, DURATIONS) == 30.0


def test_many_queries_per_video_share_bars():
    figure = overview(queries_per_video=range(1, 101))
    assert len(bars(figure, COUNTS)) == 20
    assert set(bars(figure, COUNTS).values()) == {5}
    assert median_line(figure, COUNTS) == 50.5


@pytest.mark.parametrize("seconds", [0.0, 0.004, 1.0, 3.0, 59.999, 86_400.0])
def test_equal_values_are_one_bar(seconds: float):
    figure = overview(durations_s=[seconds] * 7)
    ((place, height),) = bars(figure, DURATIONS).items()
    assert height == 7
    assert place[0] <= seconds + 1e-9
    assert seconds < place[1]
    low, high = figure.axes[DURATIONS].get_xlim()
    assert low == 0
    assert high == pytest.approx(place[1], rel=1e-5)


def test_an_empty_panel_shows_a_note(tmp_path: Path):
    empty = overview(durations_s=[], segments=[], queries_per_video=[])
    assert texts(empty).count("nothing to show") == 4
    unknown = overview(durations_s=[math.nan] * 3)
    assert texts(unknown).count("nothing to show") == 1
    assert "not shown: 3 unknown" in texts(unknown, DURATIONS)
    save_figure(empty, tmp_path / "empty.png")


def test_titles_are_not_drawn_as_math_text(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = save_figure(
            overview(title="costs $_{ \\frac \x00" + "long " * 99), tmp_path / "a.png"
        )
    with Image.open(path) as picture:
        assert picture.size == (1800, 1230)


def test_the_longest_note_does_not_overlap_the_axis_label():
    segments = [(Segment(n % 90, n % 90 + n % 60), 150.0) for n in range(12_000)]
    segments += [(Segment(9, 2), 150.0)] * 1_234 + [(Segment(math.nan, 2), 150.0)] * 1_234
    figure = overview(segments=segments + [(Segment(0, 5000), 150.0)] * 50)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[LENGTHS]
    (note,) = [t for t in axes.findobj(Text) if t.get_text().startswith("not shown")]
    assert note.get_text().count(",  ") == 2
    place = note.get_window_extent(renderer)
    assert not place.overlaps(axes.xaxis.label.get_window_extent(renderer))
    assert place.x1 <= axes.get_window_extent(renderer).x1 + 1


def test_overview_of_examples():
    def example(video: str, **changes: Any) -> GroundingExample:
        settings: dict[str, Any] = {"segment": Segment(1, 3), "duration_s": 10.0} | changes
        return GroundingExample(qid="q", video=video, video_path=None, query="x", **settings)

    figure = draw_overview_of(
        [
            example("a"),
            example("a", segment=Segment(2, 4)),
            example("b", duration_s=20.0, window=Segment(5, 25)),
            example("b", duration_s=30.0, window=Segment(35, 65)),
            example("c", duration_s=None),
            example("d", segment=None),
        ],
        title="mix",
    )
    assert "4 videos,  6 queries" in texts(figure)
    assert bars(figure, DURATIONS) == {(10, 11): 2, (20, 21): 1, (30, 31): 1}  # per clip
    assert "not shown: 1 unknown" in texts(figure, DURATIONS)
    assert sum(bars(figure, LENGTHS).values()) == 5
    assert "not shown: 1 without a known duration" in texts(figure, CENTRES)
    assert bars(figure, COUNTS) == {(0.5, 1.5): 2, (1.5, 2.5): 2}


def test_overview_of_charades(shared_dir: Path):
    videos = json.loads((shared_dir / "data" / "charades_sta" / "train.json").read_text())
    figure = draw_overview(
        title="charades",
        durations_s=[video["duration"] for video in videos.values()],
        segments=[(Segment(*t), v["duration"]) for v in videos.values() for t in v["timestamps"]],
        queries_per_video=[len(video["timestamps"]) for video in videos.values()],
    )
    assert "5,338 videos,  12,408 queries" in texts(figure)
    assert any("4 end before their start" in text for text in texts(figure, LENGTHS))
    assert "median 30.7 s" in texts(figure, DURATIONS)
