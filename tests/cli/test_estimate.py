"""Tests of `tvg-train train.estimate=true`, which estimates memory from config files only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.sizes import write_config

import tvg.estimate.from_config
from tvg.config import compose
from tvg.data.order import BatchOrder
from tvg.data.video.clip import ClipLoader
from tvg.estimate.activations import Precision
from tvg.estimate.from_config import make_job, training_list
from tvg.estimate.text import run_size, size
from tvg.model.families.clip_text import STEP_TOKENS
from tvg.model.loading import ModelSource

ESTIMATE = "train.estimate=true"


@pytest.fixture
def config_3b(tmp_path) -> Path:
    """Writes the config.json of the released 3B checkpoint, without weights."""
    return write_config(tmp_path / "3b", "3b")


@pytest.fixture
def nothing_loads(monkeypatch):
    """Fails the test if weights or videos are loaded."""

    def refuse(*_, **__):
        raise AssertionError("an estimate loads nothing")

    monkeypatch.setattr(ModelSource, "load_policy", refuse)
    monkeypatch.setattr(ClipLoader, "load", refuse)


def test_estimate_of_a_run_that_fits(command, tmp_path, nothing_loads):
    done = command("train", ESTIMATE, "train.device_memory_gib=80", f"run_dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert "Memory of each of 1 device" in done.out
    for what in ("parameters, trained", "optimizer states", "keys and values", "activations"):
        assert what in done.out
    assert re.search(r"It fits: \d\.\d\d GiB of 80 GiB\.", done.out)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / ".data").exists()  # no data was generated
    assert not (tmp_path / "runs").exists()


def test_estimate_of_a_run_that_does_not_fit_suggests_settings(command, config_3b, nothing_loads):
    words = [
        ESTIMATE,
        "model=qwen2_5_vl_3b",
        f"model.path={config_3b}",
        "data=charades",
        "trainer=gpu",
        "trainer.devices=1",
        "objective.loss.kl_coef=0.04",
        "model.gradient_checkpointing=false",
    ]
    done = command("train", *words, "train.device_memory_gib=80")
    assert done.code == 0, done.err
    assert "It does not fit:" in done.out
    helping = re.findall(r"^  (\S+).*?: (\d+\.\d\d) GiB less", done.out, re.MULTILINE)
    assert helping[0][0] == "strategy=deepspeed_zero2_offload"
    assert "model.gradient_checkpointing=true" in dict(helping)
    savings = [float(saved) for _, saved in helping]
    assert savings == sorted(savings, reverse=True)
    assert "objective.reference_offload=true" in dict(helping)
    assert "The cheapest combination that fits needs" in done.out
    assert "3.123 billion of 4 bytes" in " ".join(done.out.split())
    done = command("train", *words, "train.device_memory_gib=192")
    assert "It fits:" in done.out
    done = command("train", *words)
    assert "train.device_memory_gib=80 sets" in done.out  # no GPU here


def test_misspelt_key_is_named(command):
    assert "train.estimat: no such config key" in command("train", "train.estimat=true").error


def test_folder_without_config_is_refused(command, tmp_path):
    error = command("train", ESTIMATE, "model=qwen2_5_vl_3b", f"model.path={tmp_path}").error
    assert "contains no config.json" in error


def job(*words: str, clip_s: float | None = None):
    return make_job(compose("train", list(words)).cfg, clip_s=clip_s)


@pytest.fixture
def tiny(tiny_checkpoint) -> str:
    return f"model.path={tiny_checkpoint}"


def test_estimate_uses_the_config_keys(tiny):
    found = job(
        tiny,
        "data.batch_size=6",
        "objective.micro_batch_size=2",
        "objective.micro_batch_completions=3",
        "objective.reference_offload=true",
        "objective.loss.kl_coef=0.1",
        "rollout=hf",
        "rollout.prompts_per_call=4",
        "rollout.max_new_tokens=50",
        "policy.forward=repeated",
        "model.gradient_checkpointing=true",
        "objective/optimizer=adamw_fused",
    )
    assert (found.row.prompts, found.row.completions) == (2, 3)
    assert (found.prompts, found.prompts_per_call, found.group_size) == (6, 4, 8)
    assert found.completion_tokens == 50
    assert found.forward == "repeated"
    assert found.has_reference
    assert found.offload_reference
    assert found.gradient_checkpointing
    assert not found.samples_shared
    assert found.optimizer.scratch == 0
    assert not job(tiny).has_reference


def test_supervised_run_has_one_completion_per_prompt(tiny):
    found = job(tiny, "objective=sft", "reward=[]")
    assert (found.group_size, found.row.completions, found.has_reference) == (1, 1, False)


@pytest.mark.parametrize(
    ("words", "precision", "is_autocast", "has_masters"),
    [
        ([], (4, 4, 4), False, False),
        (["trainer.precision=bf16-mixed"], (4, 2, 4), True, False),
        (["trainer.precision=bf16-true"], (2, 2, 2), False, False),
        (["trainer.precision=bf16-mixed", "strategy=deepspeed_zero2"], (2, 2, 2), False, True),
        (["strategy=deepspeed_zero2"], (4, 4, 4), False, True),
    ],
)
def test_precision_and_optimizer_states(tiny, words, precision, is_autocast, has_masters):
    found = job(tiny, *words)
    weight, compute, stream = precision
    assert found.precision == Precision(weight=weight, compute=compute, stream=stream)
    assert (found.is_autocast, found.has_masters) == (is_autocast, has_masters)
    assert found.optimizer.states == (8 if has_masters or weight == 4 else 4)


def test_sharding_and_gradient_copies(tiny):
    words = ["trainer.devices=4", "trainer.num_nodes=2", "strategy=deepspeed_zero2_offload"]
    found = job(tiny, *words, "objective/optimizer=adamw_cpu").sharding
    assert (found.devices, found.stage, found.offload_optimizer) == (8, 2, True)
    assert job(tiny, "trainer.devices=[0,1]").gradient_copies == 2
    assert job(tiny, "trainer.devices=2", "strategy=ddp").gradient_copies == 1
    assert job(tiny).sharding.devices == 1


def test_size_of_the_largest_prompt(tiny):
    # 12 frames of 28 x 28 pixels: 6 tokens of 4 patches each.
    short = job(tiny, clip_s=6.0)
    assert short.patches == 6 * 4
    longest = job(tiny)
    assert longest.patches == 384 * 4  # 768 frames
    assert longest.prompt_tokens - short.prompt_tokens == 384 - 6
    # Qwen allows 3,584 tokens for a clip of any length, but at least 1.05 * 16 tokens per pair
    # of frames.
    words = ["data/clip=qwen", "data.max_prompt_tokens=8192"]
    assert job(tiny, *words, clip_s=60.0).patches == 3540 * 4  # 60 pairs of 59 tokens
    assert job(tiny, *words).patches == 384 * 16 * 4
    limited = job(tiny, "data/clip=qwen", "data.max_prompt_tokens=1000")
    assert limited.prompt_tokens == 1000
    # Some prompts contain the time of each step as text.
    timed, untimed = (
        job(tiny, "prompt=timelens", f"prompt.frame_times={times}", clip_s=6.0)
        for times in ("'{time_s:.1f}s'", "null")
    )
    assert timed.prompt_tokens - untimed.prompt_tokens == 6 * STEP_TOKENS
    assert timed.patches == untimed.patches


def test_longest_clip_is_read_from_the_annotations(world, tiny_world):
    # The videos need not exist.
    found = training_list(compose("train", [*world, "data.video_dir=nowhere"]).cfg)
    videos = json.loads((tiny_world / "train.json").read_text()).values()
    assert found.clip_s == max(video["duration"] for video in videos)
    assert found.num_examples == sum(len(video["timestamps"]) for video in videos)
    assert f"longest clip has {found.clip_s:.0f} s" in found.words
    found = training_list(compose("train", [*world, "data.limit_train=2"]).cfg)
    assert found.num_examples == 2
    found = training_list(compose("train", ["data.train_file=none.json"]).cfg)
    assert (found.num_examples, found.clip_s) == (None, None)
    assert "cannot be read" in found.words


def test_steps_and_checkpoint_size_of_the_run(tiny):
    words = ["trainer.devices=4", "trainer.num_nodes=2", "data.batch_size=3"]
    assert run_size(job(tiny, *words), 100) == [
        "A step takes 24 prompts: 3 on each of 8 devices, and 192 completions.",
        "An epoch takes 5 steps for 100 training examples.",  # 13 per device, 3 per step
        f"A checkpoint takes {size(job(tiny).checkpoint_bytes)} on disk. There are up to 3 of them "
        f"while one is written: {size(3 * job(tiny).checkpoint_bytes)}.",
    ]
    supervised = run_size(job(tiny, "objective=sft", "reward=[]", "data.batch_size=3"), None)
    assert supervised[0] == "A step takes 3 prompts."
    assert "unknown" in supervised[1]


def test_steps_per_epoch_equal_those_of_training(tiny):
    found = job(tiny, "trainer.devices=2", "data.batch_size=4")
    for num_examples in (1, 7, 8, 9, 16, 17):
        order = BatchOrder(
            num_examples=num_examples,
            batch_size=4,
            shuffle=True,
            seed=0,
            rank=1,
            world_size=2,
        )
        assert found.steps_per_epoch(num_examples) == len(order)


def test_config_without_weights_is_enough(command, config_3b, tiny_world):
    words = ["model=qwen2_5_vl_3b", f"model.path={config_3b}", "data=custom"]
    words += ["trainer.devices=2", "strategy=ddp", "data.video_dir=nowhere"]
    words += [f"data.train_file={tiny_world / 'train.json'}", "data.batch_size=2"]
    done = command("train", ESTIMATE, *words)
    assert done.code == 0, done.err
    num_examples = len(json.loads((tiny_world / "train.json").read_text()))
    assert "A step takes 4 prompts: 2 on each of 2 devices" in done.out
    assert f"for {num_examples} training examples" in done.out
    # 3.12 billion trained parameters of 4 bytes, each with two states of 4.
    (gib,) = re.findall(r"A checkpoint takes (\S+) GiB", done.out)
    assert float(gib) == pytest.approx(3.123e9 * 12 / 2**30, rel=1e-3)


def test_filtering_rounds_count_with_their_completion_length(tiny):
    words = ["rollout.max_new_tokens=20", "data.eval_batch_size=5"]
    assert (job(tiny, *words).eval_prompts, job(tiny, *words).eval_tokens) == (5, 20)
    words += [
        "+callbacks=[checkpoint,sample_filtering]",
        "callbacks.sample_filtering.max_new_tokens=1024",
    ]
    assert job(tiny, *words).eval_tokens == 1024


def test_estimate_of_tiny_model_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tvg.estimate.from_config.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    found = job("run_dir=here")
    assert 8e5 < found.params.total < 1e6
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_bytes_are_printed_with_units():
    assert [size(n) for n in (0, 3 * 2**20, 2**30)] == ["-", "3.0 MiB", "1.00 GiB"]
