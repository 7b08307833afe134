"""Tests that no output file replaces an input file, also through links or other paths."""

import json
import os

import pytest

from tvg.config.errors import ConfigError
from tvg.config.outputs import check_outputs


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip.gif").write_text("clip")
    (tmp_path / "mine.json").write_text('{"clip": {}}')
    (tmp_path / "mine.jsonl").write_text("{}")
    (tmp_path / "link.json").symlink_to("mine.json")
    os.link(tmp_path / "mine.json", tmp_path / "hard.json")
    os.link(tmp_path / "videos" / "clip.gif", tmp_path / "hard.gif")
    (tmp_path / "runs" / "a" / "export").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "export" / "config.json").write_text("{}")
    return tmp_path


DATA = {"annotation_file": "mine.json", "video_dir": "videos", "extensions": [".gif"]}


def prepare(**keys):
    return "prepare", {"run_dir": "r", "data": DATA, "prepare": {"overview": None, **keys}}


def evaluate(target, **more):
    return "evaluate", {
        "run_dir": "r",
        "data": DATA,
        "evaluate": {"write_difficulty": target},
    } | more


def predict(**keys):
    return "predict", {"run_dir": "r", "video": "videos/clip.gif", **keys}


def train(**keys):
    return "train", {"run_dir": "r", "data": DATA, **keys}


CASES = [
    ("prepare.report", *prepare(report="mine.json")),
    ("prepare.report", *prepare(report="videos/../mine.json")),
    ("prepare.report", *prepare(report="link.json")),
    ("prepare.report", *prepare(report="hard.json")),
    ("prepare.overview", *prepare(report="r.png", overview="./r.png")),
    ("prepare.overview", *prepare(report=None, overview="videos/clip.gif")),
    ("prepare.overview", *prepare(report=None, overview="hard.gif")),
    ("evaluate.write_difficulty", *evaluate("mine.json")),
    ("evaluate.write_difficulty", *evaluate("r/predictions.jsonl")),
    ("picture", *predict(picture="videos/clip.gif")),
    ("picture", *predict(picture="mine.png")),
    ("picture", *predict(picture="p.json.png", video="p.json.json")),
    ("run_dir", *train(data={"train_file": "r/filtering/round_01.jsonl"})),
    ("run_dir", *train(data={"train_file": "r/validation.json"})),
    ("run_dir", *train(run_dir="runs/a", model={"path": "runs/a/export"})),
    ("run_dir", *evaluate(None, run_dir="runs/a/export", model={"path": "runs/a/export"})),
    ("logger.mlflow.tracking_uri",
     *train(logger={"mlflow": {"tracking_uri": "sqlite:///mine.json"}})),
    ("prepare.report", *prepare(report="mine.jsonl")),
]  # fmt: skip


@pytest.mark.parametrize(("key", "command", "values"), CASES)
def test_output_that_would_replace_an_input_is_refused(files, key, command, values):
    with pytest.raises(ConfigError) as error:
        check_outputs(command, values)
    assert all(problem.startswith(f"{key}: ") for problem in error.value.problems)


def test_files_of_mixed_data_sets_are_inputs(files):
    values = {"run_dir": "r", "data": {"sets": {"a": DATA}}, "prepare": {"report": "mine.json"}}
    with pytest.raises(ConfigError, match=r"would replace data\.sets\.a\.annotation_file"):
        check_outputs("prepare", values)


@pytest.mark.parametrize(
    ("command", "values"),
    [
        prepare(report="report.json", overview="videos/new.png"),
        evaluate("rated.json"),
        predict(picture="out/p.png", model={"path": "."}),
        train(run_dir="videos/run", model={"path": "runs/a/export"}, resume=True),
    ],
)
def test_new_files_and_earlier_reports_are_accepted(files, command, values):
    (files / "report.json").write_text(json.dumps({"dataset": "x", "splits": {}}))
    (files / "out").mkdir()
    (files / "out" / "p.json").write_text(json.dumps({"query": "x", "segment": None, "text": ""}))
    check_outputs(command, values)
