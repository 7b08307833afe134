"""Tests that runs stopped by a signal or an error resume with identical results."""

import csv
import json
import signal
from importlib import import_module

import pytest
import torch
from helpers.killed_runs import assert_same
from omegaconf import OmegaConf

from tvg.core.interruption import Interrupted

STEPS = 3
# A callback that stops the run in a hook, and a logger that stops it before it logs.
ENDING = """
import os, signal

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger


class Dead(BaseException):  # not handled as an error by loggers and commands
    pass


class End(Callback):
    def __init__(self, hook, call, signum):
        self.calls = 0

        def end(*arguments):
            self.calls += 1
            if self.calls == call and signum is None:
                raise Dead
            if self.calls == call:
                os.kill(os.getpid(), signum)

        setattr(self, hook, end)


class EndingCSV(CSVLogger):
    def __init__(self, save_dir, name, dies_at):
        super().__init__(save_dir, name)
        self.dies_at = dies_at

    def log_metrics(self, metrics, step):
        if step == self.dies_at and "train/loss" in metrics:
            raise Dead
        super().log_metrics(metrics, step)


def length(*, texts, **rest):
    return [len(text) % 5 for text in texts]
"""


@pytest.fixture
def train(command, world, tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "ending.py").write_text(ENDING)
    monkeypatch.syspath_prepend(tmp_path)

    def run(name, *words, dies_at="null"):
        return command(
            "train",
            *world,
            f"model.path={tiny_checkpoint}",
            f"hydra.run.dir={tmp_path / name}",
            "data.batch_size=2",
            "data.eval_batch_size=1",
            "prompt=short",
            "reward=[format]",
            "+reward.length.weight=1.0",
            "+reward.length.reward._target_=ending.length",
            "+reward.length.reward._partial_=true",
            "rollout.max_new_tokens=6",
            "objective.group_size=3",
            "objective.optimizer.lr=1e-3",
            "objective.preflight=null",
            "trainer=cpu",
            f"trainer.max_steps={STEPS}",
            "trainer.val_check_interval=3",
            "trainer.enable_progress_bar=false",
            "callbacks=[checkpoint]",
            "callbacks.checkpoint.every_n_train_steps=1",
            "logger=csv",
            "logger.csv._target_=ending.EndingCSV",
            f"+logger.csv.dies_at={dies_at}",
            *words,
        )

    return run


# A parser that finds no segment, and sends SIGTERM on the third call.
PARSER = """
import os

from tvg.core.parsing import ParsedAnswer

calls = 0


def parse(text, **settings):
    global calls
    calls += 1
    if calls == 3:
        os.kill(os.getpid(), 15)
    return ParsedAnswer(None, None)
"""


def at(hook, call, signum="null"):
    target = "+callbacks.end._target_=ending.End"
    settings = {"hook": hook, "call": call, "signum": signum}
    return [target, *(f"+callbacks.end.{key}={value}" for key, value in settings.items())]


def logged(run_dir):
    """Returns (step, metric) -> set of logged texts."""
    found = {}
    for path in run_dir.rglob("metrics.csv"):
        with path.open() as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        found.setdefault((row["step"], name), set()).add(value)
    return found


def assert_ended_alike(one, other):
    states = [
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (one, other)
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == STEPS
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "GroundingDataModule"):
        assert_same(states[0][name], states[1][name])
    metrics = logged(one)
    assert {"train/loss", "train/skipped_steps", "val/miou"} <= {name for _, name in metrics}
    assert logged(other) == metrics
    validated = [json.loads((path / "validation.json").read_text()) for path in (one, other)]
    assert validated[0] == validated[1]
    assert (other / "export" / "model.safetensors").is_file()


@pytest.mark.slow
def test_killed_run_logs_all_metrics(train, tmp_path):
    assert train("whole").code == 0
    with pytest.raises(import_module("ending").Dead):
        # Stops after the checkpoint of step 2, before its metrics are logged.
        train("killed", "resume=auto", dies_at=1)
    assert ("1", "train/loss") not in logged(tmp_path / "killed")
    with pytest.raises(import_module("ending").Dead):
        train("killed", "resume=auto", *at("on_validation_start", 1))  # after step 3
    assert ("2", "train/loss") in logged(tmp_path / "killed")
    assert ("2", "val/miou") not in logged(tmp_path / "killed")
    assert train("killed", "resume=auto").code == 0
    assert_ended_alike(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_signal_saves_the_current_step(train, tmp_path):
    assert train("whole").code == 0
    stopped = tmp_path / "stopped"
    # Without the signal, only the end of the run would be saved.
    rarely = "callbacks.checkpoint.every_n_train_steps=100"
    for step, code, number, hook, call in (
        (0, 143, signal.SIGTERM, "on_fit_start", 1),
        (1, 0, signal.SIGTERM, "on_train_batch_start", 1),
        (2, 0, signal.SIGUSR1, "on_train_batch_start", 1),
        (3, 130, signal.SIGINT, "on_validation_batch_start", 2),
    ):
        done = train("stopped", "resume=auto", rarely, *at(hook, call, int(number)))
        assert done.code == code, done.err
        name = number.name
        assert f"tvg-train: stopped by {name}" in done.lines
        assert "Traceback" not in done.err
        if step == 0:
            assert (
                done.lines[-1]
                == "no checkpoint was saved yet: run the same command to start from the beginning"
            )
            continue
        path = stopped / "checkpoints" / "last.ckpt"
        assert done.lines[-2] == f"saved {path}"
        assert done.lines[-1].startswith("to resume: tvg-train data=synthetic")
        assert done.lines[-1].endswith(" resume=true")
        assert torch.load(path, weights_only=True)["global_step"] == step
        assert (str(step - 1), "train/loss") in logged(stopped)
        assert not (stopped / "export").exists()
    assert train("stopped", "resume=true").code == 0
    assert_ended_alike(tmp_path / "whole", stopped)


@pytest.mark.slow
def test_run_stops_before_its_deadline_and_saves(train, tmp_path):
    assert train("whole").code == 0
    done = train("stopped", "train.deadline=00:01:00:00", "train.deadline_margin_s=3600")
    assert done.code == 0, done.err
    assert "tvg-train: stopped by its deadline (train.deadline)" in done.lines
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 1
    assert not (tmp_path / "stopped" / "export").exists()
    assert train("stopped", "resume=true").code == 0
    assert_ended_alike(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_run_with_a_truncated_newest_checkpoint_ends_alike(train, tmp_path, asynchronous):
    words = [
        "callbacks=[checkpoint,rollout_table,reward_health]",
        "callbacks.checkpoint.keep_best=val/parse_rate",
        f"callbacks.checkpoint.asynchronous={asynchronous}",
        "callbacks.rollout_table.every_n_steps=1",
        "trainer.val_check_interval=1",
    ]
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    assert train("whole", *words).code == 0
    assert train("damaged", *words).code == 0
    newest = damaged / "checkpoints" / "step_00000003.ckpt"
    newest.write_bytes(newest.read_bytes()[:100_000])
    done = train("damaged", *words, "resume=auto")
    assert done.code == 0, done.err
    text = done.out + done.err
    assert f"resume: {newest}: is truncated or damaged" in text
    assert f"resuming from {damaged}/checkpoints/step_00000002.ckpt (step 2)" in text
    assert_ended_alike(whole, damaged)
    for name in ("rollouts.jsonl", "reward_health.txt"):
        assert (whole / name).exists() == (damaged / name).exists()
        if (whole / name).exists():
            assert (whole / name).read_text() == (damaged / name).read_text()
    kept = [sorted(p.name for p in (run / "checkpoints").iterdir()) for run in (whole, damaged)]
    assert kept[0] == kept[1]
    assert "best.ckpt" in kept[0]
    links = [(run / "checkpoints" / "best.ckpt").readlink() for run in (whole, damaged)]
    assert links[0] == links[1]


def test_stopped_evaluation_resumes_after_finished_batches(
    command, world, tiny_checkpoint, tmp_path, monkeypatch
):
    (tmp_path / "signalling.py").write_text(PARSER)
    monkeypatch.syspath_prepend(tmp_path)
    words = [
        *world,
        f"model.path={tiny_checkpoint}",
        "prompt=short",
        "prompt.parser._target_=signalling.parse",
        "rollout.max_new_tokens=2",
        "data.eval_batch_size=1",
        "logger=[]",
        f"run_dir={tmp_path / 'run'}",
    ]
    done = command("evaluate", *words)
    assert done.code == 143, done.err
    assert done.lines[-2:] == [
        "tvg-evaluate: stopped by SIGTERM",
        "predictions so far are kept: run the same command to continue",
    ]
    kept = (tmp_path / "run" / "predictions.partial.jsonl").read_text().splitlines()
    assert len(kept) == 1 + 2  # a header and two batches of one query
    # Evaluations do not use data.batch_size.
    done = command("evaluate", *words, "data.batch_size=3")
    assert done.code == 0, done.err
    assert "resuming after 2 of " in done.err + done.out


def test_evaluation_with_failed_logger_keeps_its_predictions(
    command, world, tiny_checkpoint, tmp_path
):
    (tmp_path / "mlflow.db").write_text("no store")
    words = [*world, f"model.path={tiny_checkpoint}", "prompt=short", f"run_dir={tmp_path / 'run'}"]
    words += ["rollout.max_new_tokens=2", "data.limit_test=1"]
    uri = f"logger.mlflow.tracking_uri=sqlite:///{tmp_path / 'mlflow.db'}"
    assert "is not a complete MLflow store" in command("evaluate", *words, uri).error
    done = command("evaluate", *words, "logger=[]")
    assert done.code == 0, done.err
    assert "resuming after 1 of 1 " in done.err + done.out
    assert not (tmp_path / "run" / "predictions.partial.jsonl").exists()


@pytest.mark.parametrize(("rank", "is_agreed"), [("1", True), ("1", False), ("0", True)])
def test_other_ranks_exit_with_zero_after_agreed_stop(monkeypatch, tmp_path, rank, is_agreed):
    """Lightning would kill rank 0 during its report if another rank exited with an error code."""
    monkeypatch.setenv("LOCAL_RANK", rank)

    def stop(cfg, folder):
        error = Interrupted(signal.SIGTERM)
        error.is_agreed = is_agreed
        raise error

    training = import_module("tvg.jobs.train")
    monkeypatch.setattr(training, "_train", stop)
    cfg = OmegaConf.create({"run_dir": str(tmp_path / "run"), "seed": 0})
    with pytest.raises((SystemExit, Interrupted)) as ended:
        training.train(cfg)
    is_quiet = rank == "1" and is_agreed
    assert isinstance(ended.value, SystemExit) == is_quiet
    if is_quiet:
        assert ended.value.code == 0
