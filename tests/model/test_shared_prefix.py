"""Tests that `shared_prefix` has the same losses and gradients as `repeated`, in float64.

In transformers, the norms and the vision tower's rotary embeddings cast to float32, even in a
float64 model. With these casts, forward results still agree within 1e-12. Gradients are summed
over completions in another order: their relative error is about 5e-8, and a few times larger if
the gradients of completions cancel out. The casts change the gradients of `repeated` by more,
about 6e-7. With the casts patched out, gradients also agree within 1e-12.
"""

from copy import deepcopy

import pytest
import torch
from helpers.completions import (
    FULL,
    LENGTHS,
    completions,
    learn,
    relative_error,
    train_only,
    without_float32_inside,
    worst_errors,
)
from helpers.tiny_policy import make_parts


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    made.policy.double()
    return made


@pytest.fixture(scope="module")
def prompts(parts):
    """Three prompts of different lengths, the longest not first."""
    batch = parts.batch(4).rows(1, 4)
    assert len(set(batch.attention_mask.sum(1).tolist())) == 3
    return batch


@pytest.fixture
def policy(parts):
    return deepcopy(parts.policy)


def set_checkpointing(policy, is_on):
    """Checkpointing works in train mode only; the tiny model has no dropout."""
    if is_on:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train(is_on)


def both_ways(policy, prompts, answers, **settings):
    return [
        learn(policy, prompts, answers, forward_by=way, **settings)
        for way in ("shared_prefix", "repeated")
    ]


def assert_same(shared, repeated, *, gradient):
    errors = worst_errors(shared, repeated)
    assert errors["loss"] <= 1e-12, errors
    assert errors["logprobs"] <= 1e-12, errors
    assert errors["entropy"] <= 1e-12, errors
    assert errors["gradient"] <= gradient, errors


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_same_loss_and_gradients(policy, prompts, num_prompts, trunk, is_checkpointed):
    train_only(policy, trunk=trunk)
    set_checkpointing(policy, is_checkpointed)
    batch = prompts.rows(0, num_prompts)
    answers = completions(LENGTHS[: 4 * num_prompts], seed=1)
    assert (policy.encode_clips(batch).video_features is None) == trunk
    shared, repeated = both_ways(policy, batch, answers)
    assert_same(shared, repeated, gradient=1e-7)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert shared.gradients.keys() == trained
    assert any("blocks" in name for name in trained) == trunk
    assert all(float(gradient.abs().max()) > 0 for gradient in shared.gradients.values())


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_exact_agreement_without_the_librarys_casts(
    policy, prompts, num_prompts, trunk, is_checkpointed, monkeypatch
):
    without_float32_inside(monkeypatch)
    train_only(policy, trunk=trunk)
    set_checkpointing(policy, is_checkpointed)
    batch, answers = prompts.rows(0, num_prompts), completions(LENGTHS[: 4 * num_prompts])
    assert_same(*both_ways(policy, batch, answers), gradient=1e-12)


def test_casts_change_gradients_more_than_the_summation_order(policy, prompts, monkeypatch):
    answers = completions(LENGTHS[:4])  # their gradients cancel out more than others'
    batch = prompts.rows(0, 1)
    shared, repeated = both_ways(policy, batch, answers)
    without_float32_inside(monkeypatch)
    exact = learn(policy, batch, answers, forward_by="repeated")
    for name, gradient in repeated.gradients.items():
        order = relative_error(shared.gradients[name], gradient)
        casts = relative_error(gradient, exact.gradients[name])
        assert order < min(casts, 3e-7), name


@pytest.mark.parametrize(
    ("lengths", "group_size"),
    [
        ([FULL] * 6, 2),
        ([1] * 6, 2),
        ([2, 0, 5], 1),
        ([0, 0, 3, 0, 0, 0, 0, 1, 0], 3),  # one prompt has only empty completions
    ],
)
def test_extreme_completion_lengths(policy, prompts, lengths, group_size, monkeypatch):
    without_float32_inside(monkeypatch)
    answers = completions(lengths, group_size=group_size)
    assert_same(*both_ways(policy, prompts, answers), gradient=1e-12)


def test_empty_completions_are_not_an_error(policy, prompts):
    answers = completions([0] * 3, group_size=1)
    policy.forward_by = "shared_prefix"
    for width in (FULL, 0):
        ids, mask = answers.ids[:, :width], answers.mask[:, :width]
        logprobs, entropy = policy(prompts, ids, mask, group_size=1, temperature=1.0)
        assert logprobs.shape == entropy.shape == (3, width)
        assert not logprobs.any()
        assert not entropy.any()


def test_results_agree_for_prompts_of_equal_length(policy, prompts, monkeypatch):
    without_float32_inside(monkeypatch)
    one = prompts.rows(0, 1)
    pair = one.repeat(2)
    answers = completions(LENGTHS[:8])
    assert_same(*both_ways(policy, pair, answers), gradient=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_results_agree_at_other_temperatures(policy, prompts, temperature, monkeypatch):
    without_float32_inside(monkeypatch)
    answers = completions(LENGTHS)
    warm = both_ways(policy, prompts, answers, temperature=temperature)
    assert_same(*warm, gradient=1e-12)
    plain = learn(policy, prompts, answers, forward_by="shared_prefix")
    assert relative_error(warm[0].logprobs, plain.logprobs) > 0.1


def test_results_agree_with_an_untied_head(policy, prompts, monkeypatch):
    without_float32_inside(monkeypatch)
    model, answers = policy.model, completions(LENGTHS)
    tied = both_ways(policy, prompts, answers)
    assert not any("lm_head" in name for name in tied[0].gradients)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0) * 1.1)
    untied = both_ways(policy, prompts, answers)
    assert_same(*untied, gradient=1e-12)
    assert "model.lm_head.weight" in untied[0].gradients
    assert relative_error(untied[0].logprobs, tied[0].logprobs) > 0.1


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_results_agree_with_lora(policy, prompts, is_checkpointed, monkeypatch):
    import peft

    without_float32_inside(monkeypatch)
    policy.requires_grad_(False)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(
        r=2, target_modules=names, lora_dropout=0.0, init_lora_weights=False, bias="none"
    )
    peft.inject_adapter_in_model(config, policy.model.model.language_model)
    policy.double()
    set_checkpointing(policy, is_checkpointed)
    shared, repeated = both_ways(policy, prompts, completions(LENGTHS))
    assert_same(shared, repeated, gradient=1e-12)
    assert len(shared.gradients) == 2 * len(names) * 2  # A and B of 7 projections in 2 layers
    assert all("lora_" in name for name in shared.gradients)
    assert all(float(gradient.abs().max()) > 0 for gradient in shared.gradients.values())


def test_three_training_steps_agree(policy, prompts, monkeypatch):
    """Each policy takes three AdamW steps with its own gradients."""
    without_float32_inside(monkeypatch)
    answers = completions(LENGTHS)
    policies = {"shared_prefix": policy, "repeated": deepcopy(policy)}
    optimizers = {
        way: torch.optim.AdamW(train_only(mine, trunk=False).parameters(), lr=1e-3)
        for way, mine in policies.items()
    }
    losses = []
    for _ in range(3):
        results = [learn(mine, prompts, answers, forward_by=way) for way, mine in policies.items()]
        assert worst_errors(*results)["loss"] <= 1e-9
        losses.append(float(results[0].loss))
        for optimizer in optimizers.values():
            optimizer.step()
    assert losses[0] - losses[-1] > 0.01
    # For one trained policy, both ways agree within 1e-12.
    assert_same(*both_ways(policy, prompts, answers), gradient=1e-12)


def test_half_precision_errors_are_similar_to_repeated(policy, prompts):
    policy.float()
    answers = completions(LENGTHS)
    exact = learn(policy, prompts, answers, forward_by="repeated")
    shared, repeated = both_ways(policy, prompts, answers, autocast=True)
    assert shared.logprobs.dtype == torch.float32
    assert all(torch.isfinite(gradient).all() for gradient in shared.gradients.values())
    ours, theirs = worst_errors(shared, exact), worst_errors(repeated, exact)
    assert 0 < ours["logprobs"] < 0.02, ours
    assert ours["gradient"] < 0.3, ours
    for name in ("logprobs", "entropy", "gradient"):
        assert ours[name] < 1.5 * theirs[name], (name, ours, theirs)


def test_a_copied_policy_attends_with_its_own_weights(policy, prompts):
    """The frozen reference is made by copying the policy."""
    answers = completions(LENGTHS)
    reference = deepcopy(policy)
    before = learn(reference, prompts, answers, forward_by="shared_prefix")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    after = learn(reference, prompts, answers, forward_by="shared_prefix")
    assert torch.equal(before.logprobs, after.logprobs)
