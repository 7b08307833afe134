"""Tests of `window=` in tvg-predict: segments are printed in the window's and the file's time."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import tvg.jobs.predict
from tvg.config import compose
from tvg.task.predictions import Prediction
from tvg.types import Segment


@pytest.fixture(scope="module")
def minute(tmp_path_factory, write_video) -> Path:
    """Writes a video of 60 s."""
    return write_video(tmp_path_factory.mktemp("minute") / "minute.mp4", fps=5, num_frames=300)


@pytest.fixture
def predicted(monkeypatch, tmp_path, minute):
    """Returns a function that runs tvg-predict with a given answer instead of the model's."""

    def run(answer: Segment | None, window: str) -> tuple[str, dict, dict]:
        def answered(cfg, sample, device):
            return Prediction(
                qid="query",
                video=sample.example.video,
                query=sample.example.query,
                segment=answer,
                truth=None,
                score=None,
                text="",
                duration_s=sample.clip.duration_s,
                is_parsed=answer is not None,
            )

        drawn: dict = {}
        monkeypatch.setattr(
            tvg.jobs.predict, "draw_filmstrip", lambda *_, **named: drawn.update(named)
        )
        monkeypatch.setattr(tvg.jobs.predict, "save_figure", lambda *_: None)
        monkeypatch.setattr(tvg.jobs.predict, "_predict", answered)
        words = [
            "model.path=none",
            "data/clip@clip=one_token",
            f"video={minute}",
            "query=anything",
            f"window={window}",
            f"picture={tmp_path / 'p.png'}",
            "device=cpu",
        ]
        out = StringIO()
        tvg.jobs.predict.predict(compose("predict", words).cfg, Console(file=out, width=80))
        return out.getvalue(), json.loads((tmp_path / "p.json").read_text()), drawn

    return run


def test_segment_is_printed_in_window_and_file_time(predicted):
    out, found, drawn = predicted(Segment(8.2, 12.2), "[30,60]")
    assert "clip: 30.00 s (window: 30.00 to 60.00 s of the file)," in out
    assert "segment: 8.20 to 12.20 s of the window, 38.20 to 42.20 s of the file\n" in out
    assert "the segment" not in out
    assert found["segment"] == [8.2, 12.2]
    assert found["segment_in_file"] == pytest.approx([38.2, 42.2])
    assert found["window"] == [30.0, 60.0]
    assert found["oddity"] is None
    assert drawn["time_label"] == "time in the window (s); 0 is 30 s of the file"


def test_segment_without_window_is_printed_once(predicted):
    out, found, drawn = predicted(Segment(8.2, 12.2), "null")
    assert "clip: 60.00 s, " in out
    assert "segment: 8.20 to 12.20 s\n" in out
    assert (found["window"], found["segment_in_file"]) == (None, [8.2, 12.2])
    assert drawn["time_label"] == "time (s)"


@pytest.mark.parametrize(
    ("answer", "oddity"),
    [
        (Segment(12.2, 8.2), "is reversed: its start is after its end"),
        (Segment(8.2, 30.5), "ends after the end of the clip, which is 30.00 s long"),
        (Segment(38.2, 42.2), "starts after the end of the clip, which is 30.00 s long"),
    ],
)
def test_odd_segment_is_reported(predicted, answer, oddity):
    out, found, _ = predicted(answer, "[30,60]")
    assert f"the segment {oddity}\n" in out
    assert found["oddity"] == oddity


def test_answer_without_segment_has_no_times(predicted):
    out, found, _ = predicted(None, "[30,60]")
    assert "no segment in the answer" in out
    assert (found["segment_in_file"], found["oddity"]) == (None, None)


@pytest.mark.parametrize("window", ["[30,90]", "[1000,1010.5]", "[-3,4]", "[0,61.5]", "[60,60.5]"])
def test_window_outside_the_file_is_refused(predicted, window, minute):
    start, end = json.loads(window)
    message = rf"window: .*minute\.mp4: expected a part of the file, 0 to 60\.00 s, got {start:g} to {end:g} s"  # noqa: E501
    with pytest.raises(ValueError, match=message):
        predicted(Segment(1.0, 2.0), window)


def test_end_of_window_may_exceed_the_file_slightly(predicted):
    _, found, _ = predicted(Segment(1.0, 2.0), "[0.5,60.9]")
    assert found["window"] == [0.5, 60.0]
    assert found["duration_s"] == pytest.approx(59.5)
