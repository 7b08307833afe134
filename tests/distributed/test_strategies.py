"""Tests that every strategy trains, resumes and exports like one process with the same batches.

Each run has ten GRPO steps on clips, with a KL penalty, three micro-batches of 2, 2 and 1 prompts
per rank, and ranks that decode different numbers of tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

TESTS = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("worker.py")
SHARDED = ["ddp", "fsdp2", "fsdp2_synced", "zero1", "zero2", "zero3"]
RESUMED = ["ddp", "fsdp2", "zero1", "zero2", "zero3"]
TOLERANCE = 1e-4  # of metrics
OF_WEIGHTS = 1e-5  # weights move by about 1e-3
LIMIT_S = 600  # of one run; about 40 s if two cores are idle
METRICS = ("train/loss", "train/policy/kl", "train/grad_norm", "train/reward/total")

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(3 * LIMIT_S)]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Generates enough queries for a step without repetitions."""
    from tvg.synthetic.world import world_settings
    from tvg.synthetic.write import write_world

    return write_world(
        tmp_path_factory.mktemp("world") / "world",
        settings=world_settings(difficulty="medium"),
        num_clips={"train": 12, "val": 1, "test": 1},
        seed=0,
        num_workers=0,
    )


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Returns the environment of a run, in which DeepSpeed compiles into a new folder.

    In the user's folder, a build that was killed leaves a lock for which later runs wait for ever.
    """
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for ninja
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PATH": commands,
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        "TORCH_EXTENSIONS_DIR": str(tmp_path_factory.mktemp("extensions")),
    }


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_checkpoint, world, environment):
    """Returns a function that runs a strategy once; later calls return the same folder."""
    done = {}

    def start(strategy, *, lora=False, resume=False):
        if strategy.startswith("zero") and shutil.which("g++") is None:
            pytest.skip("DeepSpeed compiles its CPU operators with g++, which is missing")
        key = (strategy, lora)
        folder = done[key] if resume else done.get(key)
        if folder is None or resume:
            folder = folder or tmp_path_factory.mktemp("run")
            done[key] = _train(
                folder, strategy, lora, tiny_checkpoint, world, environment, resume=resume
            )
        return done[key]

    yield start
    for buffer in Path("/dev/shm").glob("deepspeed_allreduce_buffer_*"):  # left by killed ranks
        buffer.unlink(missing_ok=True)


def _train(out, strategy, lora, checkpoint, world, environment, *, resume):
    ranks = 1 if strategy == "single" else 2
    settings = {
        "strategy": strategy,
        "ranks": ranks,
        "lora": lora,
        "lr": 0.05 if lora else 0.01,
        "out": str(out),
        "checkpoint": str(checkpoint),
        "world": str(world),
        "resume": resume,
        "limit_s": LIMIT_S - 20,
        "validate": not resume and strategy != "single",
        "die": not resume and strategy in RESUMED and not lora,
    }
    file = out / "settings.json"
    file.write_text(json.dumps(settings))
    names = ("metrics.json", "export")
    for name in names:
        if (out / name).exists():
            (out / name).rename(out / f"first_{name}")
    done = subprocess.run(
        [sys.executable, str(WORKER), str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if not (out / "metrics.json").is_file() or (not settings["die"] and done.returncode):
        pytest.fail(f"{strategy}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    return out


def rows_of(out, name="metrics.json"):
    return json.loads((out / name).read_text())


def weights_of(out, name="export"):
    return load_file(out / name / "model.safetensors")


def difference(left, right):
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def check_equal(found, expected):
    for row, wanted in zip(rows_of(found), rows_of(expected), strict=True):
        for name in METRICS:
            assert row[name] == pytest.approx(wanted[name], rel=TOLERANCE, abs=TOLERANCE), name
    assert difference(weights_of(found), weights_of(expected)) < OF_WEIGHTS


@pytest.mark.parametrize("strategy", SHARDED)
def test_ranks_train_like_one_process(run, strategy, tiny_checkpoint):
    expected, found = run("single"), run(strategy)
    check_equal(found, expected)
    moved = difference(weights_of(expected), load_file(tiny_checkpoint / "model.safetensors"))
    assert moved > 100 * OF_WEIGHTS, "the weights hardly change: the comparison proves nothing"
    decodes = [row["decodes"] for row in rows_of(found)]
    assert any(first != second for first, second in decodes), "ranks decode equally many tokens"
    assert all(row["train/policy/kl"] > 0 for row in rows_of(found)[1:])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2", "zero3"])
def test_ranks_train_adapters_like_one_process(run, strategy):
    check_equal(run(strategy, lora=True), run("single", lora=True))


@pytest.mark.parametrize("strategy", RESUMED)
def test_run_killed_while_saving_resumes_like_an_undisturbed_run(run, strategy):
    run(strategy)
    found = run(strategy, resume=True)
    rows, wanted = rows_of(found), rows_of(found, "first_metrics.json")
    for row, expected in zip(rows, wanted[-len(rows) :], strict=True):
        for name in METRICS:
            assert row[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6), name
    assert len(rows) == 5
    assert difference(weights_of(found), weights_of(found, "first_export")) < 1e-6


@pytest.mark.parametrize("strategy", RESUMED)
def test_export_of_each_strategy_loads_in_transformers(run, strategy):
    from transformers import AutoModelForImageTextToText

    out = run(strategy)
    folder = out / ("first_export" if (out / "first_export").exists() else "export")
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(parameter.numel() for parameter in model.parameters())
