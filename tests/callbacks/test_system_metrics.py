"""Tests that the system load is logged to MLflow while a fit runs."""

import threading
import time

import pytest

from tvg.callbacks.system_metrics import SystemMetrics
from tvg.tracking.mlflow_logger import make_mlflow_logger


@pytest.mark.parametrize("fails", [False, True])
def test_the_load_is_logged_and_the_thread_stops(store, fit, tiny_grpo, tmp_path, fails):
    class Slow(tiny_grpo):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            time.sleep(0.4)
            if fails:
                raise RuntimeError("broken")

    logger = make_mlflow_logger(
        tracking_uri=store, experiment_name="load", run_name=None, run_dir=tmp_path
    )
    num_threads = threading.active_count()
    callback = SystemMetrics(interval_s=0.1)
    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            fit(Slow(), callbacks=[callback], logger=logger, max_steps=2)
    else:
        fit(Slow(), callbacks=[callback], logger=logger, max_steps=2)
        logged = logger.experiment.get_run(logger.run_id).data.metrics
        assert logged["system/cpu_utilization_percentage"] >= 0
    assert threading.active_count() <= num_threads


def test_without_mlflow_nothing_runs(fit, tiny_grpo):
    callback = SystemMetrics(interval_s=0.1)
    fit(tiny_grpo(), callbacks=[callback], max_steps=1)
    assert callback._monitors == []


def test_the_interval_must_be_positive():
    with pytest.raises(ValueError, match=r"system_metrics\.interval_s must be above 0: got 0"):
        SystemMetrics(interval_s=0)
