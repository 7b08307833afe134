"""Tests of recording a run's config, versions and machine, also on machines without git."""

import json
import platform
import subprocess
from types import SimpleNamespace

import pytest
import torch

from tvg.callbacks import run_record
from tvg.callbacks.run_record import RunRecord, source_revision
from tvg.tracking.mlflow_logger import make_mlflow_logger


def test_records_are_in_the_run_folder_and_in_mlflow(finished_run):
    for folder in (finished_run.run_dir, finished_run.artifacts):
        assert "path: /models/a$b@c\n" in (folder / "config.yaml").read_text()
        record = json.loads((folder / "run.json").read_text())
        assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert record["versions"]["python"] == platform.python_version()
        assert record["machine"]["num_ranks"] == 1
        assert record["machine"]["cpu"]


def test_mlflow_has_tags_and_complete_params(finished_run):
    data = finished_run.client.get_run(finished_run.run_id).data
    assert data.params == {"task": "g" * 400, "lr": "0.1"}
    assert data.tags["version.torch"] == torch.__version__.partition("+")[0]
    assert data.tags["host"] == platform.node()


def test_a_changed_config_leaves_the_previous_file(fit, tiny_grpo, tmp_path):
    for text in ("a: 1\n", "a: 2\n", "a: 2\n", "a: 3\n"):
        fit(
            tiny_grpo(),
            callbacks=[RunRecord(run_dir=tmp_path, config_yaml=text, summary=None)],
            limit_train_batches=1,
        )
    kept = {path.name: path.read_text() for path in tmp_path.glob("*.yaml")}
    assert kept == {"config.yaml": "a: 3\n", "config.1.yaml": "a: 1\n", "config.2.yaml": "a: 2\n"}


def test_a_param_that_changes_on_resume_warns(store, fit, tiny_grpo, tmp_path):
    def run(lr: float) -> None:
        logger = make_mlflow_logger(
            tracking_uri=store, experiment_name="params", run_name=None, run_dir=tmp_path
        )
        record = RunRecord(run_dir=tmp_path, config_yaml="", summary={"lr": lr})
        fit(tiny_grpo(), callbacks=[record], logger=logger, limit_train_batches=1)

    run(0.1)
    with pytest.warns(UserWarning, match=r"lr=0\.2; MLflow keeps showing its first value, 0\.1"):
        run(0.2)


def test_the_revision_is_that_of_the_sources_repository(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout

    source = tmp_path / "run_record.py"
    monkeypatch.setattr(run_record, "__file__", str(source))
    assert source_revision() == {"commit": None, "is_dirty": None}
    git("init")
    source.write_text("")
    # A file that its repository does not track has no revision.
    assert source_revision() == {"commit": None, "is_dirty": None}
    git("add", ".")
    git("commit", "-m", "one")
    assert source_revision() == {"commit": git("rev-parse", "HEAD").strip(), "is_dirty": False}
    source.write_text("changed")
    assert source_revision()["is_dirty"] is True


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 20), PermissionError()]
)
def test_a_machine_without_git_has_no_revision(monkeypatch, error):
    def run(*_, **__):
        raise error

    monkeypatch.setattr(
        run_record,
        "subprocess",
        SimpleNamespace(run=run, SubprocessError=subprocess.SubprocessError),
    )
    assert source_revision() == {"commit": None, "is_dirty": None}
