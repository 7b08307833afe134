"""Tests of run folders: one process and one job per folder, and no folder after a failed start."""

import json
import logging
import os
import signal
import subprocess
import sys
from datetime import datetime

import pytest
from omegaconf import OmegaConf

from tvg.config import hydra_folders, resolvers
from tvg.config.run_folder import check_resumed, claimed

HOLD = """
import sys, time
from omegaconf import OmegaConf
from tvg.config.run_folder import claimed
with claimed(OmegaConf.create({"run_dir": sys.argv[1], "seed": 0}), "train"):
    print("held", flush=True)
    time.sleep(600)
"""


def config(run_dir, **keys):
    return OmegaConf.create({"run_dir": str(run_dir), "seed": 0, **keys})


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_second_process_is_refused_until_first_is_killed(tmp_path):
    run_dir = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        held = names(run_dir)
        with (
            pytest.raises(ValueError, match=rf"^run_dir: {run_dir} is in use .*{holder.pid}"),
            claimed(config(run_dir, resume="auto"), "train"),
        ):
            pass
        assert names(run_dir) == held
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with claimed(config(run_dir, resume="auto"), "train"):
        assert ".lock" in names(run_dir)
    assert ".lock" not in names(run_dir)


def test_other_job_in_used_folder_is_refused(tmp_path):
    with claimed(config(tmp_path / "run"), "evaluate"):
        pass
    identity = (tmp_path / "run" / "identity.json").read_bytes()
    with (
        pytest.raises(
            ValueError, match=r"already holds a run with other settings: seed was 0, is 1;"
        ),
        claimed(config(tmp_path / "run", seed=1), "evaluate"),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"already holds a run of another command \(evaluate\)"),
        claimed(config(tmp_path / "run"), "train"),
    ):
        pass
    assert (tmp_path / "run" / "identity.json").read_bytes() == identity
    with claimed(config(tmp_path / "run"), "evaluate"):
        pass  # the same job again


def test_folder_without_recorded_settings_is_refused(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    with (
        pytest.raises(ValueError, match=r"records no settings \(metrics\.json"),
        claimed(config(tmp_path), "evaluate"),
    ):
        pass
    assert names(tmp_path) == ["metrics.json", "notes.txt"]


def test_failure_before_begin_removes_the_new_folder(tmp_path):
    run_dir = tmp_path / "runs" / "new"

    def start():
        with claimed(config(run_dir), "train"):
            (run_dir / "tiny").mkdir()
            (run_dir / "mlflow_run.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start()
    assert not (tmp_path / "runs").exists()


def test_report_in_run_folder_survives_failure(tmp_path):
    run_dir = tmp_path / "run"
    prepare = {"report": str(run_dir / "report.json"), "overview": None}

    def start():
        with claimed(config(run_dir, prepare=prepare), "prepare"):
            (run_dir / "report.json").write_text("{}")
            (run_dir / "other.json").write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start()
    assert names(run_dir) == ["report.json"]


def test_picture_with_the_path_of_its_json_file_can_be_claimed(tmp_path):
    cfg = config(tmp_path / "run", picture=str(tmp_path / "out.json"))
    with claimed(cfg, "predict") as folder:
        # Locking the same path twice would fail with a message about another process. The job
        # later refuses the name itself (`picture_format`).
        folder.begin()


def test_failure_before_begin_keeps_a_used_folder_unchanged(tmp_path):
    with claimed(config(tmp_path), "train"):
        logging.getLogger().warning("first")
    (tmp_path / "csv" / "version_0").mkdir(parents=True)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    def start():
        with claimed(config(tmp_path, resume=True), "train"):
            (tmp_path / "csv" / "version_1").mkdir()
            logging.getLogger().warning("second")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start()
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before


def test_failure_after_begin_keeps_the_log(tmp_path):
    def run():
        with claimed(config(tmp_path), "train") as folder:
            logging.getLogger().warning("before")
            folder.begin()
            logging.getLogger().warning("after")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.rpartition("]")[2] for line in lines] == [" before", " after"]
    assert json.loads((tmp_path / "identity.json").read_text())["decides"] == {"seed": 0}


def test_other_ranks_do_not_claim_the_folder(tmp_path, monkeypatch):
    with claimed(config(tmp_path / "run"), "train"):
        before = names(tmp_path)
        monkeypatch.setenv("LOCAL_RANK", "1")
        with claimed(config(tmp_path / "run"), "train") as folder:
            folder.begin()
        assert names(tmp_path) == before


def test_same_job_can_use_folder_of_killed_start(tmp_path):
    (tmp_path / "tiny").mkdir()
    pid = os.fork()
    if pid == 0:
        with claimed(config(tmp_path / "run"), "train"):
            (tmp_path / "run" / "tiny").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert "tiny" in names(tmp_path / "run")
    with claimed(config(tmp_path / "run", resume="auto"), "train"):
        pass


def test_second_writer_of_a_report_is_refused(tmp_path):
    keys = {"prepare": {"report": str(tmp_path / "new" / "report.json"), "overview": None}}
    with (
        claimed(config(tmp_path / "one", **keys), "prepare"),
        pytest.raises(ValueError, match=r"^prepare\.report: .*report\.json is in use"),
        claimed(config(tmp_path / "other", **keys), "prepare"),
    ):
        pass
    assert names(tmp_path) == ["identity.json", "one"]


def test_runs_started_in_the_same_second_have_different_folders(tmp_path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 28, 10, 8, 21)

    monkeypatch.setattr(resolvers, "datetime", Clock)
    monkeypatch.setattr(resolvers, "_attempts", [1])
    monkeypatch.setenv("TVG_RUN_NAME", "")
    resolvers.register_resolvers()
    made = []
    for _ in range(3):
        resolvers._new_run_name.cache_clear()
        cfg = OmegaConf.create({"hydra": {"run": {"dir": f"{tmp_path}/runs/${{run_name:}}"}}})
        hydra_folders.JobFolders().on_run_start(cfg)
        made.append(hydra_folders._made[0].name)
        resolvers._attempts[:] = [1]
    assert made == [f"2026-11-28_10-08-21{end}" for end in ("", "_2", "_3")]
    hydra_folders.remove_unused()
    assert names(tmp_path / "runs") == made[:2]
    resolvers._new_run_name.cache_clear()


def test_checkpoint_of_other_run_is_refused(tmp_path):
    with claimed(config(tmp_path / "one"), "train"):
        pass
    with (
        claimed(config(tmp_path / "two", seed=7), "train") as folder,
        pytest.raises(ValueError, match=r"^resume: .*last\.ckpt was trained .*seed was 0, is 7"),
    ):
        check_resumed(tmp_path / "one" / "checkpoints" / "last.ckpt", folder.identity)
