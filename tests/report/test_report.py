"""Tests of prediction and metric files, checks of output folders, and printed tables."""

import io
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tvg.core.metrics import grounding_metrics
from tvg.core.text_files import output_folder_check, write_json
from tvg.report.metrics_table import print_metrics
from tvg.task.predictions import Prediction, read_predictions, write_predictions
from tvg.types import Segment

FOUND = Prediction(
    qid="OHOFG:0",
    video="OHOFG",
    query="person sitting down\nin a “chair” \u2028 一",
    segment=Segment(2.0, 9.5),
    truth=Segment(1.0, 7.5),
    score=0.647,
    text="<answer>2.0 to 9.5</answer>\r\n",
    duration_s=35.1,
    is_parsed=True,
    is_exact=True,
)
LOST = replace(FOUND, qid="OHOFG:1", segment=None, truth=None, score=None, text="", is_parsed=False)


def test_predictions_are_read_back_unchanged(tmp_path: Path):
    path = write_predictions(tmp_path / "new" / "predictions.jsonl", [FOUND, LOST])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert rows[0]["segment"] == [2.0, 9.5]
    assert rows[1]["segment"] is None
    assert rows[1]["truth"] is None
    assert list(rows[0])[:5] == ["qid", "video", "query", "segment", "truth"]
    assert read_predictions(path) == [FOUND, LOST]
    assert isinstance(read_predictions(path)[0].segment, Segment)


def test_older_prediction_file_without_exact_flag_is_read(tmp_path: Path):
    row = {key: value for key, value in FOUND.__dict__.items() if key != "is_exact"}
    row["iou"] = row.pop("score")
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert read_predictions(path) == [replace(FOUND, is_exact=None)]


def test_a_lone_surrogate_is_written_as_a_question_mark(tmp_path: Path):
    path = write_predictions(tmp_path / "p.jsonl", [replace(FOUND, text="a\ud800b")])
    assert read_predictions(path)[0].text == "a?b"


def test_nan_is_refused_and_the_old_file_is_kept(tmp_path: Path):
    path = write_predictions(tmp_path / "p.jsonl", [FOUND])
    with pytest.raises(ValueError, match="OHOFG:1"):
        write_predictions(path, [FOUND, replace(LOST, score=math.nan)])
    assert read_predictions(path) == [FOUND]
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "m.json"))):
        write_json(tmp_path / "m.json", {"miou": math.inf})
    assert os.listdir(tmp_path) == ["p.jsonl"]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"qid": "a"}', json.dumps({**FOUND.__dict__, "segment": [1]})]
)
def test_invalid_prediction_line_is_refused(line: str, tmp_path: Path):
    path = write_predictions(tmp_path / "p.jsonl", [FOUND])
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"p\.jsonl, line 2"):
        read_predictions(path)


def test_write_json_keeps_unicode(tmp_path: Path):
    path = write_json(tmp_path / "m.json", {"n": 3, "who": "一"})
    assert "一" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == {"n": 3, "who": "一"}


def test_output_folder_check_creates_nothing(tmp_path: Path):
    assert output_folder_check(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert output_folder_check(tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_output_folder_check_refuses_files_and_paths_below(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(ValueError, match="file is a file, not a folder"):
            output_folder_check(path)


def test_output_folder_check_refuses_a_read_only_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # `os.access` is patched, because chmod does not restrict root.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))} is read-only"):
        output_folder_check(tmp_path / "runs" / "new")


@pytest.mark.parametrize("name", ["a\0b", "n" * 5000])
def test_output_folder_check_refuses_impossible_names(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match="cannot write results to the output folder"):
        output_folder_check(tmp_path / name)


def test_print_metrics_shows_every_policy_with_its_intervals():
    metrics = {
        "chance": {"n": 4, "miou": 0.1},
        "grpo [new]": grounding_metrics([0.2, 0.4, 0.6, 1.0], [True] * 4, resamples=50),
    }
    low, high = metrics["grpo [new]"]["ci95"]["miou"]
    console = Console(file=io.StringIO(), width=120)
    print_metrics(metrics, title="Test [queries]", console=console)
    shown = console.file.getvalue()
    assert "Test [queries]" in shown
    assert "grpo [new]" in shown
    assert f"0.550 ({low:.3f}–{high:.3f})" in shown
    assert re.search(r"miou .* 0\.100 ", shown)
    assert re.search(r"r1_iou_0\.5 .* - ", shown)
    assert "95 %" in shown


def test_predictions_need_no_segments(tmp_path: Path):
    row = {"qid": "q", "video": "v", "query": "which?", "answer": "B", "expected": "A"}
    row |= {"score": 0.0, "text": "(B)", "duration_s": 9.0, "is_parsed": True}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (prediction,) = read_predictions(path)
    assert (prediction.answer, prediction.segment, prediction.truth) == ("B", None, None)
