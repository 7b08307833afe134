"""Tests that the reference is a frozen copy of the policy and shares untrained weights."""

import pytest
import torch
from helpers.tiny_lora import adapt, make_lora_parts
from helpers.tiny_policy import make_parts

from tvg.model.freezing import freeze_parts
from tvg.training.reference import frozen_copy, in_use
from tvg.training.reference_dtype import linear_weights

CPU = torch.device("cpu")


def score(policy, batch):
    ids = torch.arange(20, 32).view(2 * len(batch), -1)
    with torch.no_grad():
        logprobs, _ = policy(batch, ids, torch.ones_like(ids), group_size=2, temperature=1.0)
    return logprobs


def own(reference, policy):
    """Returns the names of the weights that the reference does not share with the policy."""
    shared = {id(p) for p in policy.parameters()}
    return {name for name, p in reference.named_parameters() if id(p) not in shared}


def test_frozen_weights_are_shared_and_trained_ones_copied(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    freeze_parts(made.policy.model, vision=True, merger=False, language=False)
    batch, reference = made.batch(2), frozen_copy(made.policy)
    before = score(made.policy, batch)
    trained = {name for name, p in made.policy.named_parameters() if p.requires_grad}
    assert own(reference, made.policy) == trained
    with torch.no_grad():
        for parameter in made.policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    assert torch.equal(score(reference, batch), before)
    assert not torch.allclose(score(made.policy, batch), before, atol=1e-3)
    assert not any(p.requires_grad for p in reference.parameters())


@pytest.mark.parametrize("offload", [False, True])
def test_reference_of_an_adapted_policy_shares_all_weights(tiny_checkpoint, tiny_world, offload):
    made = make_lora_parts(tiny_checkpoint, tiny_world, dropout=0.5)
    batch, before = made.batch(2), score(made.policy, made.batch(2))
    reference = frozen_copy(made.policy)
    assert own(reference, made.policy) == set()
    assert not any(".lora_" in name for name in reference.state_dict())
    adapt(made.policy)
    made.policy.train()
    with in_use(reference, made.policy, device=CPU, offload=offload) as used:
        assert torch.equal(score(used, batch), before)  # without adapters and their dropout
    assert {n for n, p in made.policy.named_parameters() if p.requires_grad} == {
        n for n, _ in made.policy.named_parameters() if ".lora_" in n
    }


def test_full_components_next_to_adapters_are_copied(tiny_checkpoint, tiny_world):
    made = make_lora_parts(tiny_checkpoint, tiny_world, full_components=["merger"])
    batch, reference = made.batch(2), frozen_copy(made.policy)
    before = score(made.policy, batch)
    assert own(reference, made.policy)
    assert all(".visual.merger." in name for name in own(reference, made.policy))
    adapt(made.policy)
    with torch.no_grad():
        for parameter in made.policy.model.model.visual.merger.parameters():
            parameter.mul_(1.5)
    assert torch.equal(score(reference, batch), before)


def test_offloaded_reference_is_unchanged_after_each_use(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    batch, reference = made.batch(2), frozen_copy(made.policy)
    before = score(reference, batch)
    resting = {name: p.data_ptr() for name, p in reference.named_parameters()}
    for _ in range(2):
        with in_use(reference, made.policy, device=CPU, offload=True) as used:
            assert torch.equal(score(used, batch), before)
        assert {name: p.data_ptr() for name, p in reference.named_parameters()} == resting


def test_linear_layers_in_bfloat16_give_equal_logprobs_under_autocast(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    freeze_parts(made.policy.model, vision=True, merger=False, language=False)
    batch = made.batch(2)
    full = frozen_copy(made.policy)
    half = frozen_copy(made.policy, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(score(half, batch), score(full, batch))
    frozen = {id(p) for p in made.policy.parameters() if not p.requires_grad}
    linear = {id(p) for p in linear_weights(half.model)} - frozen
    assert {p.dtype for p in half.parameters() if id(p) in linear} == {torch.bfloat16}
    assert {p.dtype for p in half.parameters() if id(p) not in linear} == {torch.float32}
    assert {p.dtype for p in made.policy.parameters()} == {torch.float32}
    assert half.model.lm_head.weight.dtype == torch.float32
    assert sum(p.numel() for p in half.parameters() if id(p) in linear) > 1e5


def test_offloaded_reference_follows_casts_of_the_policy(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    batch, reference = made.batch(2), frozen_copy(made.policy)
    made.policy.to(torch.bfloat16)  # as DeepSpeed does
    for module in made.policy.modules():  # it leaves buffers alone
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.float() if buffer.is_floating_point() else buffer)
    with in_use(reference, made.policy, device=CPU, offload=True) as used:
        assert {p.dtype for p in used.parameters()} == {torch.bfloat16}
        assert torch.isfinite(score(used, batch).float()).all()


def test_buffers_of_an_offloaded_reference_move_to_the_device(tiny_checkpoint, tiny_world):
    # All weights are shared with the policy, and follow it. Buffers are not.
    made = make_lora_parts(tiny_checkpoint, tiny_world)
    reference, meta = frozen_copy(made.policy), torch.device("meta")
    assert {b.device.type for b in reference.buffers()} == {"cpu"}
    with in_use(reference, made.policy, device=meta, offload=True) as used:
        assert {b.device.type for b in used.buffers()} == {"meta"}
    assert {b.device.type for b in made.policy.buffers()} == {"cpu"}
