"""Tests of memory estimates of LoRA runs: adapter states, frozen weights and activations."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from helpers.kept_memory import kept_bytes
from helpers.tiny_lora import make_lora_parts

from tvg.config import compose
from tvg.estimate.activations import Precision, Row, activations
from tvg.estimate.from_config import make_job
from tvg.estimate.memory import estimate
from tvg.estimate.remedies import remedies
from tvg.model.shape import count_parameters, shape_of


# bfloat16 without autocast is left out: there, each adapter keeps its input in float32.
@pytest.mark.parametrize(
    ("dtype", "is_half"), [("float32", False), ("float32", True), ("bfloat16", True)]
)
@pytest.mark.parametrize("forward", ["shared_prefix", "repeated"])
def test_activations_match_the_bytes_that_torch_keeps(
    tiny_checkpoint, tiny_world, forward, dtype, is_half
):
    made = make_lora_parts(tiny_checkpoint, tiny_world, dtype=dtype)
    policy = made.policy
    policy.forward_by = forward
    batch = policy.encode_clips(made.batch(2))
    group, length = 3, 40
    ids = torch.randint(30, 500, (2 * group, length), generator=torch.Generator().manual_seed(0))
    params = count_parameters(policy.model)

    def run():
        with torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext():
            policy(batch, ids, torch.ones_like(ids), group_size=group, temperature=1.0)

    measured = kept_bytes(run, policy) - 2 * params.trained * is_half  # autocast's copies
    row = Row(
        prompts=2,
        completions=group,
        prompt_tokens=int(batch.attention_mask.sum()) // 2,
        completion_tokens=length,
        patches=int(batch.video_grid_thw.prod(-1).sum()) // 2,
        forward=forward,
    )
    weight = 4 if dtype == "float32" else 2
    precision = Precision(weight=weight, compute=2 if is_half else weight, stream=weight)
    found = activations(
        shape_of(policy.model.config), params, row, precision, gradient_checkpointing=False
    )
    assert 0.75 < found.kept / measured < 1.33


def job(tiny_checkpoint, *words):
    words = ["model/adapter=lora", "objective.loss.kl_coef=0.1", *words]
    return make_job(compose("train", [f"model.path={tiny_checkpoint}", *words]).cfg, clip_s=6.0)


def test_the_estimated_parameters_equal_a_loaded_model(tiny_checkpoint, tiny_world):
    found = job(tiny_checkpoint, "model.adapter.rank=4").params
    loaded = count_parameters(make_lora_parts(tiny_checkpoint, tiny_world).policy.model)
    assert found == loaded
    assert found.adapters == found.trained > 0
    trained = (found.is_trunk_trained, found.is_merger_trained, found.is_head_trained)
    assert trained == (False, False, False)
    text = make_lora_parts(tiny_checkpoint, tiny_world).policy.model.config.text_config
    wide, mlp = text.hidden_size, text.intermediate_size
    keys = wide // text.num_attention_heads * text.num_key_value_heads
    # Input sizes (A) plus output sizes (B) of q, k, v, o, gate, up and down.
    sides = 2 * wide + 2 * (wide + keys) + 2 * wide + 3 * (wide + mlp)
    assert found.trained == 4 * sides * text.num_hidden_layers


@pytest.mark.parametrize(
    ("words", "trained", "frozen", "optimizer", "is_copied"),
    [
        ([], 4, 4, 8, False),
        (["trainer.precision=bf16-mixed"], 4, 4, 8, True),
        (["model.dtype=bfloat16", "trainer.precision=bf16-mixed"], 4, 2, 8, True),
        (["trainer.precision=bf16-mixed", "strategy=deepspeed_zero2"], 2, 2, 12, False),
        (["trainer.precision=bf16-true"], 2, 2, 4, False),
    ],
)
def test_bytes_per_parameter_by_precision(
    tiny_checkpoint, words, trained, frozen, optimizer, is_copied
):
    made = job(tiny_checkpoint, *words)
    gpu = {line.name: line.gpu for line in estimate(made)}
    assert gpu["parameters, trained"] == trained * made.params.trained
    assert gpu["parameters, frozen"] == frozen * made.params.frozen
    assert gpu["optimizer states"] == optimizer * made.params.trained
    assert gpu["gradients"] == trained * made.params.trained
    assert gpu.get("copies of weights, sampling", 0) == (
        2 * made.params.trained if is_copied else 0
    )
    assert gpu["reference"] == 0


def test_a_fully_trained_part_has_its_own_reference(tiny_checkpoint):
    made = job(tiny_checkpoint, "model.adapter.full_components=[merger]")
    own = made.params.trained - made.params.adapters
    assert own > 0
    assert {line.name: line.gpu for line in estimate(made)}["reference"] == 4 * own


def test_zero2_is_suggested_because_it_halves_frozen_weights(tiny_checkpoint):
    made = job(tiny_checkpoint, "trainer=cpu", "trainer.precision=bf16-mixed", "trainer.devices=2")
    words = [r.words for r in remedies(replace(made, prompts=1))]
    assert "strategy=deepspeed_zero2" in words  # DeepSpeed halves the frozen weights
