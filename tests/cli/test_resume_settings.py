"""Tests of resuming with changed settings: applied, or refused with all files unchanged."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

STEPS = 2


def words_of(world: Path, checkpoint: Path, run: Path) -> list[str]:
    return [
        "data=custom",
        f"data.train_file={world / 'train.json'}",
        f"data.val_file={world / 'val.json'}",
        f"data.video_dir={world / 'videos'}",
        "data/cache=none",
        "data.num_workers=0",
        "data.batch_size=2",
        f"model.path={checkpoint}",
        "prompt=short",
        "objective=sft",
        "reward=[]",
        "objective.optimizer.lr=1e-3",
        "objective.schedule.name=linear",
        "rollout.max_new_tokens=4",
        "trainer=cpu",
        f"trainer.max_steps={STEPS}",
        "trainer.limit_val_batches=0",
        "trainer.enable_progress_bar=false",
        "callbacks=[checkpoint,run_record]",
        "logger=[csv,mlflow]",
        f"logger.mlflow.tracking_uri=sqlite:///{run.parent / 'mlflow.db'}",
        f"run_dir={run}",
    ]


def state_of(run: Path) -> tuple[str, int]:
    from mlflow import MlflowClient

    held = json.loads((run / "mlflow_run.json").read_text())
    info = MlflowClient(held["tracking_uri"]).get_run(held["run_id"]).info
    return info.status, info.end_time


def files_of(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resumed")


@pytest.fixture
def finished(command, place, tiny_world, tiny_checkpoint) -> list[str]:
    """Returns the arguments of a finished run."""
    words = words_of(tiny_world, tiny_checkpoint, place / "run")
    if not (place / "run").exists():
        done = command("train", *words)
        assert done.code == 0, done.err
    return words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objective.optimizer.betas=[0.8,0.9]"], "objective.optimizer.betas was [0.9, 0.999]"),
        (["prompt=think"], "prompt.template was "),
        (["seed=7"], "seed was 0, is 7"),
        (["data.train_file=OTHER"], "data.train_file (content) was "),
        (["model.path=OTHER"], "model.path (content) was "),
        (["objective=grpo", "reward=[iou]", "objective.group_size=2"], "objective._target_ was "),
        (["data.batch_size=3"], "data.batch_size was 2, is 3"),
        (["rollout.temperature=0.5"], "rollout.temperature was 1.0, is 0.5"),
        (["reward=[format]"], "reward.format.reward._target_ was null, is "),
        (
            ["callbacks=[checkpoint,run_record,sample_filtering]"],
            "callbacks.sample_filtering._target_ was null, is ",
        ),
        (["trainer.devices=2"], "trainer.devices was 1, is 2"),
        (["strategy=ddp"], "strategy._target_ was "),
        (["trainer.precision=bf16-mixed"], "trainer.precision was "),
        (["trainer.deterministic=true"], "trainer.deterministic was false, is true"),
    ],
)
def test_refused_settings_change_no_file(
    command, finished, place, tiny_world, tiny_checkpoint, changes, message
):
    import shutil

    run = place / "run"
    if "data.train_file=OTHER" in changes:  # the same annotations with other bytes
        text = (tiny_world / "train.json").read_text().replace('"duration": ', '"duration":  ')
        (place / "other.json").write_text(text)
        changes = [f"data.train_file={place / 'other.json'}"]
    if "model.path=OTHER" in changes:
        other = Path(shutil.copytree(tiny_checkpoint, place / "other"))
        (other / "tvg.yaml").write_text("{}")
        changes = [f"model.path={other}"]
    before, state = files_of(run), state_of(run)
    error = command("train", *finished, *changes, "resume=true").error
    assert error.startswith("resume: ")
    assert message in error
    assert files_of(run) == before
    assert state_of(run) == state
    assert state[0] == "FINISHED"


def test_refusal_after_loading_a_checkpoint_changes_no_file(command, finished, place, monkeypatch):
    run = place / "run"
    before, state = files_of(run), state_of(run)
    monkeypatch.setattr("tvg.jobs.train.check_resumed", lambda *_: None)
    monkeypatch.setattr("tvg.training.policy_module.fingerprint", lambda _: "another")
    error = command("train", *finished, "resume=true").error
    assert "resume: the checkpoint belongs to a run that started from other weights" in error
    assert files_of(run) == before
    assert state_of(run) == state


def test_fewer_steps_than_done_are_refused(command, finished, place):
    before, state = files_of(place / "run"), state_of(place / "run")
    error = command("train", *finished, "trainer.max_steps=1", "resume=true").error
    assert error.startswith("trainer.max_steps: 1, but ")
    assert error.endswith("is at step 2")
    assert (files_of(place / "run"), state_of(place / "run")) == (before, state)


def test_schedule_of_an_extended_run_spans_the_new_length(command, finished, place):
    done = command("train", *finished, "trainer.max_steps=4", "data.num_workers=0", "resume=true")
    assert done.code == 0, done.err
    with (place / "run" / "csv" / "version_1" / "metrics.csv").open() as file:
        rates = [float(row["train/learning_rate"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([5e-4, 2.5e-4])  # steps 3 and 4 of a linear schedule over 4 steps
    held = json.loads((place / "run" / "identity.json").read_text())["decides"]
    assert held["trainer.max_steps"] == 4
    assert state_of(place / "run")[0] == "FINISHED"
