"""Tests of memory under strategies that shard: sizes by hand, and settings read from configs."""

from dataclasses import replace

import pytest
from helpers.sizes import BY_HAND

from tvg.config import compose
from tvg.estimate.activations import Precision
from tvg.estimate.from_config import make_job
from tvg.estimate.job import Job, OptimizerCost, Sharding
from tvg.estimate.lines import host_total
from tvg.estimate.memory import estimate
from tvg.estimate.text import host_lines, run_size
from tvg.model.shape import Parameters

PARAMS = Parameters(
    trained=1000, frozen=500, is_head_trained=True, is_trunk_trained=False, is_merger_trained=True
)
HALF = Precision(weight=2, compute=2, stream=2)
JOB = Job(
    shape=BY_HAND,
    params=PARAMS,
    precision=HALF,
    is_autocast=False,
    trained_bytes=2,
    has_masters=True,
    optimizer=OptimizerCost(states=8, scratch=0),
    sharding=Sharding(),
    gradient_copies=1,
    has_reference=True,
    offload_reference=False,
    gradient_checkpointing=True,
    forward="shared_prefix",
    samples_shared=True,
    is_encoded=False,
    prompts=2,
    prompts_per_call=None,
    group_size=4,
    micro_prompts=1,
    micro_completions=4,
    prompt_tokens=10,
    completion_tokens=3,
    patches=24,
)
LAYER = 24 + 30  # weights in one layer of BY_HAND


def table(**sharding):
    lines = estimate(replace(JOB, sharding=Sharding(devices=4, devices_per_node=4, **sharding)))
    return {line.name: line.gpu for line in lines}, {line.name: line.host for line in lines}


@pytest.mark.parametrize(
    ("stage", "weights", "states", "gradients"),
    [(1, 2000, 3000, 2000), (2, 2000, 3000, 500), (3, 500, 3000, 500)],
)
def test_zero_shards_by_stage(stage, weights, states, gradients):
    gpu, _ = table(engine="deepspeed", stage=stage, bucket=7, live=100)
    assert gpu["parameters, trained"] == gpu["reference"] == weights
    assert gpu["optimizer states"] == states  # 8 + 4 bytes, of a quarter
    assert gpu["gradients"] == gpu["gradients (still kept)"] == gradients
    assert gpu["communication buffers"] == 2 * 7 * 2
    assert gpu["step"] == 1000 * 4 / 4  # float32 gradients of a quarter
    # Stage 3 gathers all weights once to sample, and a limited number of them to learn.
    assert gpu.get("copies of weights, sampling", 0) == (1500 * 2 if stage == 3 else 0)
    assert gpu["copies of weights, learning"] == ((100 + LAYER) * 2 if stage == 3 else 0)


def test_offloaded_states_need_host_memory():
    gpu, host = table(engine="deepspeed", stage=2, offload_optimizer=True)
    assert gpu["optimizer states"] == gpu["gradients"] == gpu["step"] == 0
    assert host["optimizer states"] == 1000 * (8 + 4 + 2) / 4
    assert host["gradients"] == 1000 * (2 + 4) / 4
    gpu, host = table(engine="deepspeed", stage=3, offload_optimizer=True, offload_parameters=True)
    assert gpu["parameters, trained"] == gpu["reference"] == 0
    assert host["parameters, frozen"] == 500 * 2 / 4
    assert host["reference"] == 1000 * 2 / 4


def test_fsdp2_gathers_layers_and_accumulates_gradients():
    shared = {"engine": "fsdp2", "stage": 3}
    gpu, host = table(**shared, reduces_once=False)
    assert host["loading"] == (1500 + 1000) * 4 / 4
    assert gpu["gradients"] == 1000 * 2 / 4
    assert gpu["copies of weights, sampling"] == 1500 * 2
    ends = 2 * 7 * 2  # embeddings and head, which stay gathered
    assert gpu["copies of weights, learning"] == ends * 6 + LAYER * (2 * 2 + 2 + 4)
    # The second of two micro-batches is added to complete float32 gradients.
    gpu, _ = table(**shared, reduces_once=True)
    assert gpu["gradients"] == 1000 * 2 / 4 + 1000 * 4
    once = replace(JOB, prompts=1, sharding=Sharding(devices=4, **shared, reduces_once=True))
    assert {line.name: line.gpu for line in estimate(once)}["gradients"] == 1000 * 2 / 4


def test_host_memory_of_a_node_counts_its_processes():
    job = replace(JOB, sharding=Sharding(devices=8, devices_per_node=4), offload_reference=True)
    lines = estimate(job)
    loading = 1500 * 4 + 1000 * 4  # float32 weights, and a copy of the trained ones
    assert host_total(lines) == loading
    (text,) = host_lines(job, lines)
    assert f"node with 4 process(es): {4 * loading / 2**20:.1f} MiB while loading" in text
    assert host_total(estimate(replace(job, loaded_bytes=2))) == loading / 2


def test_reference_in_bfloat16_keeps_embeddings_and_head():
    full = replace(JOB, trained_bytes=4, reference_bytes=4, wide_reference=300)
    assert full.reference_size == 4000
    assert replace(full, reference_bytes=2).reference_size == 300 * 4 + 700 * 2
    assert replace(full, has_reference=False).reference_size == 0


def job(tiny_checkpoint, *words):
    return make_job(compose("train", [f"model.path={tiny_checkpoint}", *words]).cfg, clip_s=6.0)


def test_strategies_are_read_from_the_config(tiny_checkpoint):
    fsdp2 = ["strategy._target_=tvg.training.fsdp2.FSDP2Strategy", "trainer.devices=2"]
    found = job(tiny_checkpoint, *fsdp2, "trainer.precision=bf16-mixed")
    assert (found.sharding.engine, found.sharding.stage, found.sharding.devices) == ("fsdp2", 3, 2)
    assert found.precision == Precision(weight=4, compute=2, stream=2)
    assert not found.is_autocast
    assert not found.has_masters
    words = ["strategy=deepspeed_zero2", "strategy.stage=3", "+strategy.reduce_bucket_size=5"]
    found = job(tiny_checkpoint, *words)
    assert (found.sharding.engine, found.sharding.stage, found.sharding.bucket) == (
        "deepspeed",
        3,
        5,
    )
    assert job(tiny_checkpoint, "strategy=ddp", "trainer.devices=2").sharding.engine == "torch"


def test_kept_checkpoints_are_counted(tiny_checkpoint):
    found = job(tiny_checkpoint)
    assert found.kept_checkpoints == job(tiny_checkpoint, "callbacks=[]").kept_checkpoints + (
        found.kept_checkpoints - 1
    )
    one = found.checkpoint_bytes / 2**20
    assert f"{found.kept_checkpoints} of them while one is written" in run_size(found, None)[-1]
    assert f"{found.kept_checkpoints * one:.1f} MiB" in run_size(found, None)[-1]


def test_reference_dtype_is_read_from_the_config(tiny_checkpoint):
    words = ["trainer.precision=bf16-mixed", "objective.loss.kl_coef=0.1"]
    found = job(tiny_checkpoint, *words, "objective.reference_dtype=bfloat16")
    text = found.shape
    assert found.wide_reference >= text.words * text.hidden
    wide, narrow = found.wide_reference, found.params.trained - found.wide_reference
    assert found.reference_size == 4 * wide + 2 * narrow
