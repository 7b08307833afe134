"""Tests a training whose MLflow store is locked by another process for 40 seconds."""

from __future__ import annotations

import sqlite3

import pytest

LOCKED_S = 40
# A callback that locks the store from the second step on, as another process.
LOCKING = """
import subprocess, sys

from lightning.pytorch.callbacks import Callback

HOLD = '''
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
'''


class Lock(Callback):
    def __init__(self, database, seconds):
        self.words = [sys.executable, "-c", HOLD, database, str(seconds)]
        self.holder = None

    def on_train_batch_end(self, *arguments):
        if self.holder is None:
            self.holder = subprocess.Popen(self.words, stdout=subprocess.PIPE, text=True)
            assert self.holder.stdout.readline() == "locked\\n"
"""


def metrics(database, run):
    """Returns the (metric, step, value) of a run, without times."""
    with sqlite3.connect(database) as store:
        query = (
            "select key, step, value from metrics join runs using (run_uuid) "
            "where name = ? and key not like 'perf/%' order by key, step"
        )
        return store.execute(query, (run,)).fetchall()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:MLflow")
def test_store_locked_for_40_seconds_gets_all_metrics(
    command, world, tiny_checkpoint, tmp_path, monkeypatch
):
    (tmp_path / "locking.py").write_text(LOCKING)
    monkeypatch.syspath_prepend(tmp_path)
    database = tmp_path / "mlflow.db"
    words = [
        "train",
        *world,
        f"model.path={tiny_checkpoint}",
        "prompt=short",
        "objective=sft",
        "reward=[]",
        "data.batch_size=2",
        "data.limit_val=2",
        "rollout.max_new_tokens=4",
        "trainer=cpu",
        "trainer.max_steps=4",
        "trainer.val_check_interval=4",
        "trainer.enable_progress_bar=false",
        "logger=mlflow",
        f"logger.mlflow.tracking_uri=sqlite:///{database}",
    ]
    assert command(*words, "name=free").code == 0
    lock = [f"+callbacks.lock.database={database}", f"+callbacks.lock.seconds={LOCKED_S}"]
    done = command(*words, "name=locked", "+callbacks.lock._target_=locking.Lock", *lock)
    assert done.code == 0, done.err
    assert "queued writes" in done.err + done.out  # the lock has delayed writes
    assert metrics(database, "locked") == metrics(database, "free")
    assert len(metrics(database, "free")) > 4
    assert not (tmp_path / "runs" / "locked" / "mlflow_unsent.jsonl").exists()
    with sqlite3.connect(database) as store:
        assert store.execute("select distinct status from runs").fetchall() == [("FINISHED",)]
