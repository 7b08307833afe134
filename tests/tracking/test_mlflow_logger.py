"""Tests that each run folder has one MLflow run, in a store that is created once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger

from tvg.tracking import mlflow_store
from tvg.tracking.mlflow_logger import make_mlflow_logger


def make(store: str, run_dir: Path, **changes) -> MLFlowLogger:
    settings = {"experiment_name": "runs", "run_name": "first"} | changes
    logger = make_mlflow_logger(tracking_uri=store, run_dir=run_dir, **settings)
    assert isinstance(logger, MLFlowLogger)
    return logger


def test_a_run_has_name_tags_parent_and_folder(store, tmp_path):
    parent = make(store, tmp_path / "parent")
    logger = make(store, tmp_path / "child", parent_run_id=parent.run_id, tags={"stage": 1})
    run = logger.experiment.get_run(logger.run_id)
    assert run.info.run_name == "first"
    assert run.data.tags["stage"] == "1"
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    kept = json.loads((tmp_path / "child" / "mlflow_run.json").read_text())
    assert kept["run_id"] == logger.run_id
    folder = Path(store.removeprefix("sqlite:///")).parent
    assert run.info.artifact_uri.startswith((folder / "mlartifacts" / "runs").as_uri())


def test_a_resumed_folder_continues_its_mlflow_run(store, tmp_path):
    first = make(store, tmp_path)
    first.log_metrics({"loss": 1.0}, step=1)
    first.finalize("failed")
    again = make(store, tmp_path)
    again.log_metrics({"loss": 0.5}, step=2)
    assert again.run_id == first.run_id
    assert again.experiment.get_run(again.run_id).info.status == "RUNNING"
    history = again.experiment.get_metric_history(again.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]


@pytest.mark.parametrize("how", ["deleted", "unknown"])
def test_missing_run_is_replaced_with_a_warning(store, tmp_path, how):
    first = make(store, tmp_path)
    if how == "deleted":
        first.experiment.delete_run(first.run_id)
    else:
        (tmp_path / "mlflow_run.json").write_text('{"run_id": "0123456789abcdef"}')
    with pytest.warns(UserWarning, match="starting a new run"):
        again = make(store, tmp_path)
    assert again.run_id != first.run_id
    assert make(store, tmp_path).run_id == again.run_id


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_an_invalid_run_file_is_replaced_with_a_warning(store, tmp_path, text):
    (tmp_path / "mlflow_run.json").write_text(text)
    with pytest.warns(UserWarning, match="names no MLflow run"):
        make(store, tmp_path)


def test_deleted_experiment_is_refused(store, tmp_path):
    logger = make(store, tmp_path, experiment_name="gone")
    logger.experiment.delete_experiment(logger.experiment_id)
    with pytest.raises(ValueError, match="experiment_name: 'gone' was deleted"):
        make(store, tmp_path / "other", experiment_name="gone")


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_other_ranks_write_nothing(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    logger = make_mlflow_logger(
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        experiment_name="runs",
        run_name=None,
        run_dir=tmp_path / "run",
    )
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.log_hyperparams({"lr": 1.0})
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_store_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"logger\.tracking_uri: cannot write .*file/mlflow\.db"):
        make(f"sqlite:///{tmp_path}/file/mlflow.db", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_store_creation_by_another_process_is_awaited(store, tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_store, "_LOCK_TIMEOUT_S", 0.1)
    lock = FileLock(store.removeprefix("sqlite:///") + ".lock")
    with lock, pytest.raises(ValueError, match="another process has been creating"):
        make(store, tmp_path)
    make(store, tmp_path)


PROGRAM = """
from tvg.tracking.mlflow_logger import make_mlflow_logger
import sys
make_mlflow_logger(
    tracking_uri="sqlite:///mlflow.db", experiment_name="x", run_name=None, run_dir=sys.argv[1]
)
"""


@pytest.mark.slow
def test_two_processes_may_create_one_store_simultaneously(tmp_path):
    command = [sys.executable, "-c", PROGRAM]
    started = [
        subprocess.Popen(
            [*command, name], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for name in ("a", "b")
    ]
    printed = "".join(process.communicate(timeout=200)[0].decode() for process in started)
    assert [process.returncode for process in started] == [0, 0], printed
    assert "alembic" not in printed
    assert "INFO mlflow" not in printed
    runs = [json.loads((tmp_path / name / "mlflow_run.json").read_text()) for name in ("a", "b")]
    assert runs[0]["experiment_id"] == runs[1]["experiment_id"]
    assert runs[0]["run_id"] != runs[1]["run_id"]
    assert runs[0]["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
