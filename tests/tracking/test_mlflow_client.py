"""Tests that a store locked or lost during a run stops no run; a bad store at the start does."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import lightning.pytorch as pl
import pytest

from tvg.callbacks.rollout_table import RolloutTable
from tvg.callbacks.run_record import RunRecord
from tvg.callbacks.timelines import Timelines
from tvg.core import interruption
from tvg.tracking import mlflow_client, mlflow_store
from tvg.tracking.mlflow_client import UNSENT_FILE
from tvg.tracking.mlflow_guard import state_kept
from tvg.tracking.mlflow_logger import make_mlflow_logger


@pytest.fixture
def database(store, tmp_path, monkeypatch):
    """A copy of an existing store for each test; creating one takes seconds longer."""
    make(store, tmp_path / "first_use")
    path = tmp_path / "mlflow.db"
    shutil.copy(store.removeprefix("sqlite:///"), path)
    monkeypatch.setattr(mlflow_client, "_PROBE_S", 0.05)
    monkeypatch.setattr(mlflow_client, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(mlflow_client, "_LARGEST_SHARE", 1e9)
    monkeypatch.setattr(mlflow_client, "_END_PATIENCE_S", 0.0)
    return path


def make(store, run_dir):
    uri = store if isinstance(store, str) else f"sqlite:///{store}"
    return make_mlflow_logger(
        tracking_uri=uri, experiment_name="runs", run_name="a", run_dir=run_dir
    )


def locked(database):
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return closing(connection)


def history(logger, name="loss"):
    points = logger.experiment.get_metric_history(logger.run_id, name)
    return [(point.step, point.value) for point in points]


def unsent(run_dir):
    lines = (run_dir / UNSENT_FILE).read_text().splitlines()
    return [json.loads(line)["call"] for line in lines]


def log(logger, *steps):
    for step in steps:
        logger.log_metrics({"loss": step / 2}, step=step)


def test_metrics_for_a_locked_store_are_sent_later_and_once(database, tmp_path, monkeypatch):
    logger = make(database, tmp_path)
    log(logger, 1, 2)
    asked = []
    monkeypatch.setattr(
        logger.experiment._client, "get_run", lambda *_: asked.append(1) or 1 / 0, raising=True
    )
    with locked(database), pytest.warns(UserWarning, match=r"mlflow\.db cannot .*locked") as warned:
        log(logger, 3, 4, 5)
    assert len(warned) == 1
    assert asked == [], "MLflow would wait for the lock"
    monkeypatch.undo()
    assert unsent(tmp_path) == ["log_batch"] * 3
    log(logger, 6)
    assert history(logger) == [(step, step / 2) for step in range(1, 7)]
    assert not (tmp_path / UNSENT_FILE).exists()
    logger.finalize("success")
    assert logger.experiment.get_run(logger.run_id).info.status == "FINISHED"


def log_for(logger, seconds, step):
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        step += 1
        log(logger, step)
        time.sleep(1)
    return step


@pytest.mark.slow
def test_metrics_of_40_locked_seconds_are_complete(database, tmp_path):
    logger, step = make(database, tmp_path), 1
    log(logger, step)
    with locked(database), pytest.warns(UserWarning, match=r"mlflow\.db cannot .*locked"):
        step = log_for(logger, 40, step)
    assert len(unsent(tmp_path)) == step - 1
    logger.finalize("success")
    assert history(logger) == [(number, number / 2) for number in range(1, step + 1)]
    assert not (tmp_path / UNSENT_FILE).exists()


def test_a_locked_store_is_not_retried_at_every_step(database, tmp_path, monkeypatch):
    logger = make(database, tmp_path)
    monkeypatch.setattr(mlflow_client, "_FIRST_PAUSE_S", 100.0)
    logger.experiment._pause_s = 100.0
    asked = []
    monkeypatch.setattr(
        mlflow_client, "problem_of", lambda *_, **__: asked.append(1) or "database is locked"
    )
    with pytest.warns(UserWarning, match="the run continues"):
        log(logger, *range(50))
    assert len(asked) == 1
    assert len(unsent(tmp_path)) == 50


def test_a_deleted_store_is_reported_and_not_recreated(database, tmp_path):
    logger = make(database, tmp_path / "run")
    log(logger, 1)
    database.rename(tmp_path / "moved.db")
    with pytest.warns(UserWarning, match="the file is missing"):
        log(logger, 2)
    with pytest.warns(UserWarning, match="2 writes of this run could not be sent .*resume=true"):
        logger.finalize("success")
    assert not database.exists()
    (tmp_path / "moved.db").rename(database)
    again = make(database, tmp_path / "run")
    assert history(again) == [(1, 0.5), (2, 1.0)]
    assert again.experiment.get_run(again.run_id).info.status == "RUNNING"


@pytest.mark.filterwarnings("ignore:.*(the run continues|could not be sent)")
def test_queued_metrics_go_to_the_replacement_run(database, store, tmp_path):
    logger = make(database, tmp_path / "run")
    database.unlink()
    log(logger, 1, 2)
    logger.finalize("failed")
    with pytest.warns(UserWarning, match="starting a new run"):
        again = make(store, tmp_path / "run")
    assert history(again) == [(1, 0.5), (2, 1.0)]


def test_metrics_left_by_a_kill_are_sent_without_duplicates(database, tmp_path):
    first = make(database, tmp_path)
    log(first, 1)
    (sent,) = first.experiment.get_metric_history(first.run_id, "loss")
    rows = [["loss", 0.5, sent.timestamp, 1], ["loss", 1.0, sent.timestamp + 5, 2]]
    lines = [
        json.dumps({"call": "log_batch", "arguments": {"metrics": [row], "params": [], "tags": []}})
        for row in [*rows, rows[0]]
    ]
    end = {"call": "set_terminated", "arguments": {"status": "FINISHED", "end_time": 1}}
    (tmp_path / UNSENT_FILE).write_text("\n".join([*lines, json.dumps(end), '{"call": "lo']))
    again = make(database, tmp_path)
    assert history(again) == [(1, 0.5), (2, 1.0)]
    assert again.experiment.get_run(again.run_id).info.status == "RUNNING"
    assert not (tmp_path / UNSENT_FILE).exists()


def test_a_failed_artifact_does_not_block_metrics(database, tmp_path, monkeypatch):
    logger = make(database, tmp_path)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"png")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.tracking.MlflowClient.log_artifact", full)
        with pytest.warns(UserWarning, match="No space left"):
            logger.experiment.log_artifact(logger.run_id, str(picture), "pictures")
        log(logger, 1, 2)
        assert logger.experiment.num_waiting > 0
        logger.experiment._drain(0.0)
        assert history(logger) == [(1, 0.5), (2, 1.0)]
        assert unsent(tmp_path) == ["log_artifact"]
    log(logger, 3)
    names = [file.path for file in logger.experiment.list_artifacts(logger.run_id, "pictures")]
    assert names == ["pictures/picture.png"]


def test_a_refused_value_is_reported_and_not_resent(database, tmp_path):
    logger = make(database, tmp_path)
    logger.experiment.log_param(logger.run_id, "lr", 1)
    with pytest.warns(UserWarning, match="MLflow refuses the call log_param"):
        logger.experiment.log_param(logger.run_id, "lr", 2)
    assert logger.experiment.num_waiting == 0
    with pytest.warns(UserWarning, match="MLflow refuses the call log_artifact"):
        logger.experiment.log_artifact(logger.run_id, str(tmp_path / "nowhere"))
    log(logger, 1)
    assert history(logger) == [(1, 0.5)]


class LosesStore(pl.Callback):
    """Deletes the database in the middle of a run, or locks it for some steps."""

    def __init__(self, database, how):
        self.database, self.how = database, how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2 and self.how == "deleted":
            self.database.unlink()
        if batch_idx == 2 and self.how == "locked":
            self.lock = locked(self.database)
        if batch_idx == 4 and self.how == "locked":
            self.lock.__exit__(None, None, None)


@pytest.mark.filterwarnings("ignore:.*(the run continues|could not be sent)")
@pytest.mark.parametrize("how", ["locked", "deleted"])
def test_training_continues_without_its_store(database, tmp_path, fit, tiny_grpo, how):
    run_dir = tmp_path / "run"
    logger = make(database, run_dir)
    callbacks = [
        LosesStore(database, how),
        RunRecord(run_dir=run_dir, config_yaml="seed: 1\n", summary={"lr": 0.1}),
        RolloutTable(run_dir=run_dir, every_n_steps=1, max_rows=2),
        Timelines(run_dir=run_dir, num_queries=2),
    ]
    trainer = fit(tiny_grpo(), logger=[logger], callbacks=callbacks, default_root_dir=run_dir)
    assert trainer.global_step == 6
    if how == "deleted":
        assert {"log_batch", "log_table", "log_artifact"} <= set(unsent(run_dir))
        return
    assert not (run_dir / UNSENT_FILE).exists()
    assert [step for step, _ in history(logger, "train/loss")] == list(range(6))
    tables = logger.experiment.list_artifacts(logger.run_id, "rollouts")
    assert len(tables) == 6


def test_a_store_locked_at_start_gives_one_error_line(database, tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_store, "_BUSY_TIMEOUT_S", 0.05)
    with locked(database), pytest.raises(ValueError, match=r"tracking_uri: another .* locked"):
        make(database, tmp_path / "run")


def test_a_full_disk_is_not_reported_as_damage(database):
    error = mlflow_store.store_error("database or disk is full", database)
    assert str(error).startswith(f"logger.tracking_uri: the disk of {database} is full")
    assert "move it away" not in str(error)


def test_a_stopped_run_waits_less_for_a_locked_store(database, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(mlflow_client, "_END_PATIENCE_S", 60.0)
    monkeypatch.setattr(mlflow_client, "_FAILED_PATIENCE_S", 10.0)
    client = make(database, tmp_path / "run").experiment
    monkeypatch.setattr(client, "_drain", waited.append)
    client.set_terminated("a", "FINISHED")
    monkeypatch.setattr(interruption, "pending", lambda: signal.SIGTERM)
    client.set_terminated("a", "FINISHED")
    assert waited == [60.0, 10.0]


def half_made(path):
    """Imitates a kill during the migrations: columns exist, but their revision is missing."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM alembic_version")
        connection.execute("DROP TABLE webhooks")
        connection.commit()


def no_database(path):
    path.write_bytes(b"nothing" * 1000)


@pytest.mark.parametrize(
    ("spoil", "problem"), [(half_made, "duplicate column"), (no_database, "not a database")]
)
def test_a_broken_store_is_named_with_its_remedy(database, tmp_path, spoil, problem):
    spoil(database)
    with pytest.raises(ValueError, match=f"not a complete MLflow store .*{problem}") as caught:
        make(database, tmp_path / "run")
    assert f"`mv {database} {database}.broken`" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", [half_made, no_database, Path.unlink])
def test_failed_start_keeps_its_error_despite_a_broken_store(database, tmp_path, spoil):
    make(database, tmp_path / "run")
    spoil(database)
    with pytest.raises(ValueError, match=r"^mine$"), state_kept(tmp_path / "run", lambda: False):
        raise ValueError("mine")
    assert database.exists() == (spoil is not Path.unlink)


class Stop(BaseException):
    """Like a kill, except that `finally` blocks run."""


def test_interrupted_start_leaves_no_incomplete_store(tmp_path, monkeypatch):
    def stop(engine):
        raise Stop

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", stop)
    with pytest.raises(Stop):
        make(tmp_path / "store" / "mlflow.db", tmp_path / "run")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["mlflow.db.lock"]


def test_an_unreachable_server_gives_one_error_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match=r"^logger\.tracking_uri: the MLflow server does not ans"):
        make("http://127.0.0.1:9", tmp_path)


KILLED = """
import os, sys
import mlflow.store.db.utils as utils
from alembic.runtime.migration import MigrationStep, RevisionStep
from tvg.tracking.mlflow_logger import make_mlflow_logger

done = 0
def upgrade(engine, former=utils._upgrade_db):
    from sqlalchemy import event
    @event.listens_for(engine, "before_cursor_execute")
    def count(*_):
        global done
        done += 1
        if done == int(sys.argv[1]):
            os._exit(9)
    former(engine)
utils._upgrade_db = upgrade
make_mlflow_logger(
    tracking_uri="sqlite:///mlflow.db", experiment_name="x", run_name=None, run_dir="run"
)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_during_store_creation_is_harmless(tmp_path):
    for statement in (1, 40, 200, 10**9):
        command = [sys.executable, "-c", KILLED, str(statement)]
        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
        assert done.returncode == (0 if statement == 10**9 else 9), done.stderr[-2000:]
        assert (tmp_path / "mlflow.db").exists() == (statement == 10**9)
    left = {path.name for path in tmp_path.iterdir()} - {"mlruns", "mlartifacts"}
    assert left == {"mlflow.db", "mlflow.db.lock", "run"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mlflow_run.json"]
    assert Path(tmp_path / "run" / "mlflow_run.json").stat().st_size > 0
