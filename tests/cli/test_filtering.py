"""Tests of sample filtering with kills and several ranks, and of the difficulties it can write."""

import json

import pytest
import torch
from helpers.killed_runs import assert_same, finish, kill_when_there, start_training

from tvg.build import build_all
from tvg.config import compose
from tvg.core.interval import segment_iou
from tvg.data.readers import read_jsonl, read_time_r1
from tvg.task.predictions import read_predictions

# A parser that returns a segment for any text, because random weights write no valid answers.
# It counts its calls during scoring (anywhere=True), and blocks at call number BLOCK_AT.
PARSER = """
import os, time, zlib
from pathlib import Path

from tvg.core.parsing import ParsedAnswer
from tvg.types import Segment

def parse(text, *, anywhere):
    if anywhere:
        calls = Path(os.environ["CALLS"])
        with calls.open("a") as file:
            file.write("x")
        if os.environ.get("BLOCK_AT") == str(calls.stat().st_size):
            Path(os.environ["BLOCK_FILE"]).touch()
            time.sleep(600)
    number = zlib.crc32(text.encode("utf-8", errors="replace"))
    return ParsedAnswer(Segment(float(number % 9), number % 9 + 1.0 + number // 9 % 12), "crc")
"""


def start(run_dir, checkpoint, world, *more, **environment):
    overrides = [
        f"model.path={checkpoint}",
        "data.world=null",
        f"data.train_file={world}/train.json",
        f"data.val_file={world}/val.json",
        "data.test_file=null",
        f"data.video_dir={world}/videos",
        "data.batch_size=2",
        "data.eval_batch_size=2",
        "prompt=short",
        "prompt.parser._target_=crc_parser.parse",
        "reward=[iou]",
        "objective.group_size=3",
        "objective.loss.kl_coef=0.1",
        "objective.optimizer.lr=3e-3",
        "rollout.max_new_tokens=6",
        "trainer=cpu",
        "trainer.max_steps=-1",
        "trainer.max_epochs=3",
        "trainer.limit_val_batches=0",
        "trainer.enable_progress_bar=false",
        "callbacks=[checkpoint,sample_filtering]",
        "data/selection@callbacks.sample_filtering.select=top",
        "callbacks.sample_filtering.select.k=4",
        "logger=csv",
        *more,
    ]
    return start_training(run_dir, overrides, **environment)


@pytest.mark.slow
def test_run_killed_inside_a_round_resumes_identically(tiny_checkpoint, tiny_world, tmp_path):
    (tmp_path / "crc_parser.py").write_text(PARSER)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = [tiny_checkpoint, tiny_world]
    printed = finish(start(whole, *run, CALLS=str(tmp_path / "calls_whole")))
    assert "filtering round 1: 4 of 6 examples selected" in printed
    assert "filtering round 2: 4 of 6 examples selected" in printed
    assert (tmp_path / "calls_whole").stat().st_size == 12  # two rounds of six examples
    marker = tmp_path / "in_the_third_batch"
    process = start(
        *(killed, *run),
        **{"CALLS": str(tmp_path / "calls"), "BLOCK_AT": "5", "BLOCK_FILE": str(marker)},
    )
    kill_when_there(process, marker)
    assert not (killed / "filtering" / "round_01.json").exists()
    finish(start(killed, *run, "resume=true", CALLS=str(tmp_path / "calls_again")))
    assert (tmp_path / "calls_again").stat().st_size == 12 - 4  # two batches were scored before
    assert files_of(killed / "filtering") == files_of(whole / "filtering")
    one, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (whole, killed)
    )
    assert one["global_step"] == other["global_step"] == 3 + 2 + 2
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "GroundingDataModule"):
        assert_same(one[name], other[name])
    assert one["lr_schedulers"][0]["last_epoch"] == 7  # one learning-rate schedule for all rounds


@pytest.mark.slow
def test_two_ranks_share_the_scoring_of_a_round(tiny_checkpoint, tiny_world, tmp_path):
    (tmp_path / "crc_parser.py").write_text(PARSER)
    rounds = {}
    for name, *words in (
        ("one", "trainer.devices=1"),
        ("two", "trainer.devices=2", "strategy=ddp", "data.batch_size=1"),
    ):
        more = ["callbacks.sample_filtering.score_first=true", "trainer.max_epochs=2", *words]
        finish(
            start(
                *(tmp_path / name, tiny_checkpoint, tiny_world),
                *more,
                CALLS=str(tmp_path / f"calls_{name}"),
            )
        )
        folder = tmp_path / name / "filtering"
        assert sorted(path.name for path in folder.iterdir()) == [
            "round_00.json", "round_00.jsonl", "round_01.json", "round_01.jsonl"
        ]  # fmt: skip
        rounds[name] = files_of(folder)
        state = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["global_step"] == 4  # twice four examples, two per step
        assert state["GroundingDataModule"]["place"]["epoch"] == 2
        assert (tmp_path / f"calls_{name}").stat().st_size == 12  # one rank scores each example
    for file in ("round_00.json", "round_00.jsonl"):  # equal weights select equal examples
        assert rounds["one"][file] == rounds["two"][file]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def evaluate(command, world, tiny_checkpoint, tmp_path):
    def run(*words):
        return command(
            "evaluate",
            *world,
            f"model.path={tiny_checkpoint}",
            "prompt=short",
            "split=train",
            "rollout.max_new_tokens=4",
            "logger=[]",
            f"run_dir={tmp_path / 'run'}",
            *words,
        )

    return run


@pytest.mark.parametrize(
    ("name", "reader"), [("hard.json", read_time_r1), ("hard.jsonl", read_jsonl)]
)
def test_difficulties_are_written_as_annotations(
    evaluate, tiny_world, tmp_path, monkeypatch, name, reader
):
    (tmp_path / "crc_parser.py").write_text(PARSER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    path = tmp_path / "new" / name
    done = evaluate(f"evaluate.write_difficulty={path}", "prompt.parser._target_=crc_parser.parse")
    assert done.code == 0, done.err
    examples = reader(path, tiny_world / "videos", clamp_ends=True, drop_invalid=True).examples
    predictions = read_predictions(tmp_path / "run" / "predictions.jsonl")
    assert [e.qid for e in examples] == [p.qid for p in predictions]
    for example, prediction in zip(examples, predictions, strict=True):
        assert (example.query, example.segment) == (prediction.query, prediction.truth)
        assert example.prediction == prediction.segment is not None
        assert example.difficulty == 100 * prediction.score
        assert prediction.score == segment_iou(prediction.segment, prediction.truth)
        assert example.video_path is not None


def test_invalid_path_for_difficulties_is_refused(evaluate, tmp_path):
    done = evaluate(f"evaluate.write_difficulty={tmp_path / 'hard.csv'}")
    assert done.error.startswith("evaluate.write_difficulty: expected a name that ends with .json")
    assert not (tmp_path / "run").exists()  # refused before any work
    (tmp_path / "file").touch()
    done = evaluate(f"evaluate.write_difficulty={tmp_path / 'file' / 'hard.json'}")
    assert done.error.startswith("evaluate.write_difficulty: cannot write")


@pytest.mark.parametrize("selection", ["band", "gaussian", "random", "top"])
def test_callbacks_compose_with_any_selection(selection, tmp_path):
    composed = compose(
        "train",
        [
            "callbacks=[sample_filtering,early_stop]",
            f"data/selection@callbacks.sample_filtering.select={selection}",
            f"run_dir={tmp_path}",
        ],
    )
    filtering, stopping = build_all(composed.cfg.callbacks)
    assert filtering.select.func.__name__ == f"select_{selection}"
    assert (filtering.rescore, filtering.max_new_tokens) == ("all", None)
    assert stopping.metric == "train/reward/total"


def test_compat_scores_with_1024_tokens(tmp_path):
    words = ["compat=time_r1", "callbacks=[sample_filtering]", f"run_dir={tmp_path}"]
    (filtering,) = build_all(compose("train", words).cfg.callbacks)
    assert filtering.max_new_tokens == 1024
    settings = filtering.select.keywords
    assert json.dumps([settings[key] for key in ("low", "high", "unit", "k")]) == (
        "[0.0, 0.7, 100, 2500]"
    )
