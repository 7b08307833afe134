"""Tests of filmstrips and timelines: positions of elements, and files complete or absent."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from tvg.plot.filmstrip import draw_filmstrip
from tvg.plot.save import save_figure
from tvg.plot.style import PREDICTED_COLOUR, TRUTH_COLOUR
from tvg.plot.timeline import TimelineRow, draw_timelines
from tvg.types import Segment


def clip(num_frames: int = 20, height: int = 36, width: int = 64) -> torch.Tensor:
    """Returns frames [T, 3, H, W]; frame t is grey with value 10 * t."""
    levels = torch.arange(num_frames, dtype=torch.uint8) * 10
    return levels[:, None, None, None].expand(num_frames, 3, height, width)


def bars(figure: Figure, colour: str) -> list[tuple[float, float]]:
    """Returns (start, end) of every filled bar of a colour, in axis units."""
    found = []
    for axes in figure.axes:
        for patch in axes.patches:
            is_bar = isinstance(patch, Rectangle) and patch.get_fill()
            if is_bar and to_hex(patch.get_facecolor()).upper() == colour:
                found.append((patch.get_x(), patch.get_x() + patch.get_width()))
    return found


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def film(**changes: object) -> Figure:
    arguments: dict = {
        "frames": clip(),
        "frame_times_s": torch.arange(20) * 0.5,
        "duration_s": 10.0,
        "predicted": Segment(2, 6),
        "truth": Segment(4, 8),
        "query": "a person sits down",
    } | changes
    return draw_filmstrip(arguments.pop("frames"), arguments.pop("frame_times_s"), **arguments)


def test_filmstrip_draws_both_segments_and_their_iou():
    figure = film()
    assert bars(figure, PREDICTED_COLOUR) == [(2.0, 6.0)]
    assert bars(figure, TRUTH_COLOUR) == [(4.0, 8.0)]
    shown = texts(figure)
    assert "IoU 0.33" in shown  # 2 of 6 seconds
    assert "2.0 – 6.0 s" in shown
    assert "a person sits down" in shown


def test_filmstrip_labels_the_time_of_its_axis():
    assert "time (s)" in texts(film())
    assert "time in the window (s)" in texts(film(time_label="time in the window (s)"))


def test_filmstrip_shows_the_frame_nearest_to_each_cells_middle():
    strip = film().axes[0]
    num_shown = len(strip.images)
    assert num_shown > 4
    for cell, image in enumerate(strip.images):
        middle_s = (cell + 0.5) * 10 / num_shown
        shown_s = float(np.asarray(image.get_array())[0, 0, 0]) / 10 * 0.5
        assert abs(shown_s - middle_s) <= 0.25 or middle_s > 9.5
        assert image.get_extent()[:2] == pytest.approx(
            (cell * 10 / num_shown, (cell + 1) * 10 / num_shown)
        )


def test_filmstrip_without_answer_or_truth():
    unanswered = film(predicted=None)
    assert "no segment found" in texts(unanswered)
    assert "IoU" not in texts(unanswered)
    unknown = film(truth=None)
    assert "Truth" not in texts(unknown)
    assert bars(unknown, PREDICTED_COLOUR) == [(2.0, 6.0)]


@pytest.mark.parametrize(
    "predicted",
    [Segment(5, 3), Segment(-4, 99), Segment(50, 60), Segment(4, 4), Segment(math.nan, 2)],
)
def test_filmstrip_can_draw_invalid_segments(predicted: Segment, tmp_path: Path):
    save_figure(film(predicted=predicted), tmp_path / "odd.png")
    assert (tmp_path / "odd.png").stat().st_size > 1000


@pytest.mark.parametrize("shape", [(1, 36, 64), (2, 90, 20), (400, 8, 60)])
def test_filmstrip_of_any_length_and_shape(shape: tuple[int, int, int], tmp_path: Path):
    num_frames, height, width = shape
    times_s = np.linspace(0, 9, num_frames)
    frames = torch.zeros(num_frames, 3, height, width, dtype=torch.uint8)
    path = save_figure(film(frames=frames, frame_times_s=times_s), tmp_path / "strip.png")
    with Image.open(path) as picture:
        assert picture.size[0] == 2100
        assert 300 < picture.size[1] < 900


def test_queries_are_not_drawn_as_math_text(tmp_path: Path):
    query = "costs $5_{ to $\\frac{ 一个人 🪑 \x00\ud800 <b>" + "long " * 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(film(query=query, title="a $^$ title"), tmp_path / "a.png")
        row = TimelineRow(query=query, duration_s=9, predicted=None, truth=Segment(1, 2))
        save_figure(draw_timelines([row], title="$^$"), tmp_path / "b.png")
    assert "costs $5_{ to $\\frac{" in texts(film(query=query))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": clip().float()}, "uint8"),
        ({"frames": clip().permute(0, 2, 3, 1)}, r"\[T, 3, H, W\]"),
        ({"frame_times_s": [0.0]}, "got 1 for 20 frames"),
        ({"duration_s": 0.0}, "duration_s"),
    ],
)
def test_filmstrip_refuses_invalid_frames_and_times(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        film(**changes)


def test_timelines_scale_each_row_by_its_own_clip():
    rows = [
        TimelineRow(query="x", duration_s=10, predicted=Segment(2, 6), truth=Segment(4, 8)),
        TimelineRow(query="y", duration_s=100, predicted=Segment(20, 60), truth=None),
    ]
    figure = draw_timelines(rows, title="Validation")
    assert bars(figure, PREDICTED_COLOUR) == [pytest.approx((0.2, 0.6))] * 2
    assert bars(figure, TRUTH_COLOUR) == [pytest.approx((0.4, 0.8))]
    assert texts(figure).count("IoU 0.33") == 1


def test_timelines_need_rows_and_a_positive_duration():
    with pytest.raises(ValueError, match="at least one query"):
        draw_timelines([])
    row = TimelineRow(query="x", duration_s=0.0, predicted=None, truth=None)
    with pytest.raises(ValueError, match="duration_s must be above 0"):
        draw_timelines([row])


def test_save_figure_leaves_the_old_file_when_drawing_fails(tmp_path: Path):
    path = tmp_path / "new" / "strip.png"
    save_figure(Figure(figsize=(1, 1)), path)
    before = path.read_bytes()

    class Broken(Figure):
        def savefig(self, target, **_) -> None:
            Path(target).write_bytes(b"half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        save_figure(Broken(), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["strip.png"]


def test_save_figure_refuses_unknown_suffixes(tmp_path: Path):
    with pytest.raises(ValueError, match=r"strip\.txt.*png"):
        save_figure(Figure(), tmp_path / "strip.txt")
    assert list(tmp_path.iterdir()) == []
