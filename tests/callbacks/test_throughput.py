"""Tests of the throughput metrics of each step, with a simulated clock."""

import csv
from types import SimpleNamespace

import pytest
from helpers.tiny_policy import with_rows

from tvg.callbacks import throughput
from tvg.callbacks.throughput import Throughput

NONE = {"prompts_per_s": 0, "tokens_per_s": 0}


def step_outputs(*, num_prompts=0, num_tokens=0, **more):
    """Returns the outputs of a training step."""
    return with_rows(None, num_prompts=num_prompts, num_tokens=num_tokens, **more)


class Recorder:
    """Replaces the module and records the logged metrics."""

    device = SimpleNamespace(type="cpu")

    def __init__(self):
        self.logged = []

    def log_dict(self, values, **_):
        self.logged.append(values)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now.s)
    return now


class Walk:
    """Runs the callback on one batch after another.

    Each batch has a waiting time, a working time and the global step at its end.
    """

    def __init__(self, clock, peak_tflops=None):
        self.clock, self.module = clock, Recorder()
        self.callback = Throughput(peak_tflops=peak_tflops)
        self.trainer = SimpleNamespace(global_step=4)
        self.callback.on_train_start(self.trainer, self.module)

    def batch(self, wait_s, work_s, step, outputs=None):
        self.clock.s += wait_s
        self.callback.on_train_batch_start(self.trainer, self.module, None, 0)
        self.clock.s += work_s
        self.trainer.global_step = step
        self.callback.on_train_batch_end(self.trainer, self.module, outputs, None, 0)
        logged = {key: value for values in self.module.logged for key, value in values.items()}
        self.module.logged.clear()
        return {key.removeprefix("perf/"): pytest.approx(v) for key, v in logged.items()}


def test_rates_of_one_step(clock):
    walk = Walk(clock)
    outputs = step_outputs(num_prompts=6, num_tokens=120)
    # The wait before the first batch is the start-up of the workers and does not count.
    assert walk.batch(9.0, 2.0, 5, outputs) == {"step_s": 2, "prompts_per_s": 3, "tokens_per_s": 60}
    assert walk.batch(1.0, 2.0, 6, outputs) == {
        "step_s": 3,
        "data_wait_s": 1,
        "prompts_per_s": 2,
        "tokens_per_s": 40,
    }


def test_rates_are_per_optimizer_step(clock):
    walk = Walk(clock)
    walk.batch(0, 1, 5)
    assert walk.batch(1, 1, 5, step_outputs(num_prompts=3)) == {}
    assert walk.batch(1, 1, 6, step_outputs(num_prompts=5)) == {
        "step_s": 4,
        "data_wait_s": 2,
        "prompts_per_s": 2,
        "tokens_per_s": 0,
    }
    assert walk.batch(1, 3, 8, step_outputs(num_prompts=2))["step_s"] == 2  # two steps in 4 s
    assert walk.batch(1, 3, 9, step_outputs(num_prompts=2))["prompts_per_s"] == 0.5


def test_stage_seconds_are_per_optimizer_step(clock):
    walk = Walk(clock)
    stages = {"vision": 0.5, "sampling": 1.0}
    found = walk.batch(0, 2, 5, step_outputs(stage_s=stages))
    assert found == {"step_s": 2, "vision_s": 0.5, "sampling_s": 1.0, **NONE}
    walk.batch(1, 2, 5, step_outputs(stage_s=stages))
    found = walk.batch(1, 2, 7, step_outputs(stage_s={"sampling": 3.0, "reward": 0.5}))  # two steps
    assert found == {
        "step_s": 3,
        "data_wait_s": 1,
        "vision_s": 0.25,
        "sampling_s": 2.0,
        "reward_s": 0.25,
        **NONE,
    }
    assert walk.batch(1, 2, 8) == {"step_s": 3, "data_wait_s": 1}


def test_mfu_is_the_share_of_the_peak(clock):
    walk = Walk(clock, peak_tflops=2.0)
    assert walk.batch(0, 2, 5, step_outputs(num_flops=3e12)) == {"step_s": 2, "mfu": 0.75, **NONE}
    walk.batch(1, 1, 5, step_outputs(num_flops=1e12))
    # The time spent waiting for data counts: the GPU could have worked.
    found = walk.batch(1, 1, 6, step_outputs(num_flops=3e12))
    assert found == {"step_s": 4, "data_wait_s": 2, "mfu": 0.5, **NONE}
    assert "mfu" not in walk.batch(1, 1, 7)
    assert "mfu" not in Walk(clock).batch(0, 2, 5, step_outputs(num_flops=3e12))


@pytest.mark.parametrize("peak_tflops", [0, -1.0, float("nan")])
def test_the_peak_must_be_positive(peak_tflops):
    with pytest.raises(ValueError, match=r"callbacks\.throughput\.peak_tflops.*more than 0"):
        Throughput(peak_tflops=peak_tflops)


@pytest.mark.parametrize("event", ["on_validation_start", "on_save_checkpoint"])
def test_validation_and_checkpoint_time_is_not_waiting(clock, event):
    walk = Walk(clock)
    walk.batch(0, 1, 5)
    arguments = [walk.trainer, walk.module, {}][: 2 if "validation" in event else 3]
    getattr(walk.callback, event)(*arguments)
    assert walk.batch(60, 1, 6) == {"step_s": 1}
    assert walk.batch(1, 1, 7) == {"step_s": 2, "data_wait_s": 1}


def test_metrics_are_logged_at_the_training_step(finished_run):
    (file,) = (finished_run.run_dir / "csv").rglob("metrics.csv")
    rows = [row for row in csv.DictReader(file.open()) if row["train/global_step"]]
    assert len(rows) == 12
    for row in rows:
        assert float(row["train/global_step"]) == int(row["step"]) + 1
        ratio = float(row["perf/tokens_per_s"]) / float(row["perf/prompts_per_s"])
        assert ratio == pytest.approx(20, rel=1e-4)
    assert [bool(row["perf/data_wait_s"]) for row in rows] == [False] + [True] * 5 + [False] + [
        True
    ] * 5
    history = finished_run.client.get_metric_history(finished_run.run_id, "perf/step_s")
    assert len(history) == 12


def test_step_seconds_are_logged_without_step_outputs(fit, tiny_grpo):
    trainer = fit(tiny_grpo(extras={}), callbacks=[Throughput(peak_tflops=None)])
    logged = [name for name in trainer.callback_metrics if name.startswith("perf/")]
    assert sorted(logged) == ["perf/data_wait_s", "perf/step_s"]
