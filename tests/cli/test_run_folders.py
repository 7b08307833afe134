"""Tests that commands share no run folder, replace no input, and leave no folder when they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tvg.config.run_folder import claimed
from tvg.training import evaluation


def files_of(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def evaluating(tiny_world, tiny_checkpoint):
    return [
        "data=custom",
        "data/cache=none",
        "data.num_workers=0",
        f"data.annotation_file={tiny_world / 'test.json'}",
        f"data.video_dir={tiny_world / 'videos'}",
        f"model.path={tiny_checkpoint}",
        "prompt=short",
        "rollout.max_new_tokens=2",
        "logger=[]",
    ]


def test_evaluations_of_different_prompts_use_different_folders(command, evaluating, tmp_path):
    for prompt in ("short", "think"):
        assert command("evaluate", *evaluating, f"prompt={prompt}").code == 0
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all((folder / "metrics.json").is_file() for folder in folders)
    held = files_of(folders[0])
    template = json.loads((folders[0] / "identity.json").read_text())["decides"]["prompt.template"]
    error = command("evaluate", *evaluating, f"run_dir={folders[0]}", "prompt=stepwise").error
    assert error.startswith(f"run_dir: {folders[0]} already holds a run with other settings: ")
    assert f"prompt.template was {json.dumps(template)[:40]}" in error
    assert files_of(folders[0]) == held
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_partial_predictions_remain_until_all_are_written(
    command, evaluating, tmp_path, monkeypatch
):
    words = [*evaluating, f"run_dir={tmp_path / 'run'}"]
    monkeypatch.setattr("tvg.jobs.evaluate.write_predictions", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("evaluate", *words)
    assert (tmp_path / "run" / "predictions.partial.jsonl").is_file()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "predict_batch", lambda **_: 1 / 0)  # must not be called
    assert command("evaluate", *words).code == 0
    assert (tmp_path / "run" / "predictions.jsonl").is_file()
    assert not (tmp_path / "run" / "predictions.partial.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train", ["data=custom", "data.train_file=none.jsonl", "data.video_dir=x", "logger=[]"]),
        ("train", ["train.estimate=true", "train.device_memory_gib=80"]),
        ("train", ["seeed=1"]),
        ("evaluate", ["model.path=nowhere", "logger=[]"]),
        ("predict", ["model.path=nowhere", "video=none.mp4", "query=x"]),
        ("prepare", ["data=custom", "data.annotation_file=none.jsonl", "data.video_dir=x"]),
    ],
)
def test_failures_and_estimates_leave_no_run_folder(command, tmp_path, name, words):
    done = command(name, *words)
    assert done.code == (0 if "train.estimate=true" in words else 2), done.err
    assert not list(tmp_path.iterdir())


def test_prepare_refuses_to_replace_its_annotations(command, tiny_world, tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_bytes((tiny_world / "test.json").read_bytes())
    words = ["data=custom", f"data.annotation_file={mine}", f"data.video_dir={tiny_world}/videos"]
    error = command("prepare", *words, "prepare.report=mine.json").error
    assert error.startswith("prepare.report: mine.json would replace data.annotation_file")
    assert mine.read_bytes() == (tiny_world / "test.json").read_bytes()
    assert list(tmp_path.iterdir()) == [mine]


def test_run_folder_in_use_is_refused(command, evaluating, tmp_path):
    from tvg.config import compose

    run_dir = tmp_path / "run"
    cfg = compose("evaluate", [*evaluating, f"run_dir={run_dir}"]).cfg
    with claimed(cfg, "evaluate"):
        error = command("evaluate", *evaluating, f"run_dir={run_dir}").error
        assert error.startswith(f"run_dir: {run_dir} is in use by another process")
