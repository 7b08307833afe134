"""Tests of the start of commands: quick answers without importing torch, and early errors."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
COMMANDS = ("train", "evaluate", "predict", "prepare", "export", "check")
HEAVY = ("torch", "torchvision", "transformers", "lightning", "mlflow", "matplotlib", "av")

RUN = """
import contextlib, importlib, io, json, sys

command, heavy, cases = json.loads(sys.argv[1])
main = importlib.import_module(f"tvg.cli.{command}").main
for words in cases:
    sys.argv = [f"tvg-{command}", *words]
    code, err = 0, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    loaded = [name for name in heavy if name in sys.modules]
    print(json.dumps({"words": words, "code": code, "loaded": loaded, "error": err.getvalue()}))
"""

CASES = {
    "train": {
        "--help": (0, ""),
        "--cfg job": (0, ""),
        "sed=1": (2, "sed: no such config key"),
        "objective.group_sise=4": (2, "did you mean 'objective.group_size'?"),
        "model=smal": (2, "model: no option 'smal'"),
        "seed=???": (2, "seed: a value is needed"),
        "objective.group_size=1": (2, "objective.group_size: a group needs at least 2"),
        "+trainer.gradient_clip_val=1 trainer.precision=16": (2, "trainer.precision: 16"),
    },
    "evaluate": {
        "--help": (0, ""),
        "": (2, "model.path: a value is needed"),
        "model=tiny_qwen3_vl": (2, "model.path: a value is needed"),
        "model.path=x data=custom": (2, "data.video_dir: a value is needed"),
        "splt=val": (2, "did you mean 'split'?"),
    },
    "predict": {
        "--help": (0, ""),
        "model.path=x query=x": (2, "video: a value is needed"),
        "video=x query=x": (2, "model.path: a value is needed"),
        "rollout=x": (2, "rollout: no option 'x'"),
    },
    "prepare": {
        "--help": (0, ""),
        "data.on_missing=no": (2, "data.on_missing: expected error or skip"),
        "prepare.num_worker=2": (2, "did you mean 'prepare.num_workers'?"),
    },
    "export": {
        "--help": (0, ""),
        "": (2, "run_dir: a value is needed"),
        "run_dir=x chekpoint=3": (2, "did you mean 'checkpoint'?"),
    },
    "check": {
        "--help": (0, ""),
        "device=2": (2, "did you mean 'devices'?"),
    },
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_config_errors_do_not_import_torch(name, tmp_path):
    cases = CASES[name]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([name, HEAVY, [case.split() for case in cases]])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [" ".join(answer["words"]) for answer in answers] == list(cases)
    for answer, (code, text) in zip(answers, cases.values(), strict=True):
        assert answer["loaded"] == [], answer
        assert answer["code"] == code, answer
        assert text in answer["error"], answer


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("name", ["train", "prepare"])
def test_ranks_of_torchrun_need_a_given_name(command, monkeypatch, tmp_path, name, rank):
    for key, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("TVG_RUN_NAME", raising=False)
    done = command(name)
    assert done.error == (
        "name: a value is needed (name=...): WORLD_SIZE=2 starts several processes, whose "
        "names from the clock would differ; torchrun also accepts --rdzv-id=NAME, or --standalone "
        "on one node"
    )
    assert len(done.lines) == 2  # the message and a hint, without a warning from Hydra
    assert not list(tmp_path.iterdir())


def test_functions_of_console_scripts_exist():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert sorted(project["scripts"]) == sorted(f"tvg-{name}" for name in COMMANDS)
    for target in project["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_module_run_by_python_uses_the_command_name(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tvg.cli.train", "sed=1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr.startswith("tvg-train: sed: no such config key; did you mean 'seed'?")


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_by_default(command, monkeypatch, given, used):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert command("train", "--cfg", "job").code == 0
    assert os.environ["OMP_WAIT_POLICY"] == used
    assert ("GOMP_SPINCOUNT" in os.environ) == (given is None)


ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


@pytest.fixture
def allocator(command, monkeypatch, tmp_path):
    """Runs a command with or without a GPU; returns the settings of torch's allocator."""

    def run(*, has_gpu, **given):
        for name in ALLOCATOR:
            monkeypatch.setenv(name, "")  # restored after the test
            os.environ.pop(name)
        os.environ.update(given)
        gpu = tmp_path / "nvidiactl"
        if has_gpu:
            gpu.touch()
        monkeypatch.setattr("tvg.config.entry._NVIDIA_FILES", (str(gpu),))
        assert command("train", "--cfg", "job").code == 0
        return {name: os.environ[name] for name in ALLOCATOR if name in os.environ}

    return run


def test_gpu_memory_segments_expand_by_default(allocator):
    assert allocator(has_gpu=False) == {}
    assert allocator(has_gpu=True) == {ALLOCATOR[0]: "expandable_segments:True"}


@pytest.mark.parametrize("name", ALLOCATOR)
def test_allocator_settings_of_the_user_are_kept(allocator, name):
    given = {name: "max_split_size_mb:64"}
    assert allocator(has_gpu=True, **given) == given


def test_unknown_list_entry_shows_the_options(command):
    error = command("train", "reward=[iou,foo]", "callbacks=[checkpoint]").error
    assert error.startswith(
        "reward: no option 'foo'; for an option of your own in FOLDER/reward/foo.yaml, "
        "add --config-dir=FOLDER\n"
    )
    assert "\n\nAvailable options in 'reward':\n\tboundary" in error
    assert "\n\tiou\n" in error
    assert "_" not in [line.strip()[0] for line in error.splitlines() if line]
    single = command("train", "experiment=demoo").error
    assert single.startswith("experiment: no option 'demoo'; did you mean 'demo'")
    near = command("train", "callbacks=[chekpoint]").error
    assert near.startswith("callbacks: no option 'chekpoint'; did you mean 'checkpoint'?")


def test_unknown_options_and_keys_are_reported_together(command):
    error = command("train", "reward=[foo]", "sed=1", "+callbacks=[bar]", "data.bach_size=2").error
    for problem in (
        "sed: no such config key; did you mean 'seed'?",
        "data.bach_size: no such config key; did you mean 'data.batch_size'",
        "reward: no option 'foo'",
        "callbacks: no option 'bar'",
    ):
        assert error.count(problem) == 1, problem


@pytest.mark.parametrize("word", ["seed=${sed}", "objective.optimizer.lr=${sed}", "name=${sed}"])
def test_misspelt_interpolation_is_one_message(command, word):
    error = command("train", word).error
    assert "'sed' not found" in error
    assert word.partition("=")[0].split(".")[0] in error or "hydra.run.dir" in error


@pytest.mark.parametrize("query", ["the ball, then ${price}", "null", "1e3"])
def test_query_keeps_its_characters(command, monkeypatch, query):
    asked = []
    monkeypatch.setattr(
        "tvg.jobs.predict.predict", lambda cfg: asked.append((cfg.query, cfg.video))
    )
    done = command("predict", f"query={query}", "video=a,b.mp4", "model.path=x")
    assert done.code == 0, done.err
    assert asked == [(query, "a,b.mp4")]


def test_missing_gpus_are_reported_in_one_line(command, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    error = command("train", "trainer=gpu").error
    assert error.startswith("trainer.accelerator: gpu, but torch ")
    assert error.endswith("sees no GPU on this machine: use trainer=cpu to train without GPUs")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    error = command("train", "trainer=gpu", "trainer.devices=8").error
    assert error == "trainer.devices: 8 GPUs requested, but 2 found"


def test_error_from_lightning_names_the_key():
    from omegaconf import OmegaConf

    from tvg.build import build_trainer
    from tvg.config.entry import user_message

    trainer = {
        "_target_": "lightning.pytorch.Trainer",
        "_partial_": True,
        "accelerator": "cpu",
        "limit_val_batches": 1.5,
    }
    strategy = {"_target_": "tvg.build.automatic_strategy"}
    with pytest.raises(Exception, match="limit_val_batches") as caught:
        build_trainer(OmegaConf.create({"trainer": trainer, "strategy": strategy}))
    message = user_message(caught.value)
    assert message is not None
    assert message.startswith("trainer.limit_val_batches: ")
