"""Tests of GRPO with several updates per rollout, KL in the reward, and dynamic sampling."""

import functools

import pytest
import torch
from helpers.grpo_module import learn, logprobs_of, make_module, sample
from helpers.tiny_policy import make_parts

from tvg.core.advantage import group_advantages
from tvg.training.resampling import FlatGroupResampling
from tvg.training.train_batch import advantages_of_rank

REWARDS = torch.tensor([0.0, 1.0, 0.5, 0.2] * 3, dtype=torch.float64)


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    made.policy.double()
    return made


@pytest.fixture(scope="module")
def rollout(parts):
    return sample(parts, num=3)


@pytest.fixture(autouse=True)
def as_before(parts):
    """Restores the policy after each test, because tests update it."""
    before = {name: value.clone() for name, value in parts.policy.state_dict().items()}
    yield
    parts.policy.load_state_dict(before)
    parts.policy.zero_grad()


def take_steps(module, rollout, rewards, monkeypatch, *, rate=0.0, is_last=False):
    """Runs `_learn_from` with plain gradient steps.

    Returns the metrics of each update, the log-probabilities before each update, and the metrics
    of the step.
    """
    updates, found = [], []
    update = type(module).update.__get__(module)  # unpatched, also in a second call

    def step(loss, *, describe):
        with torch.no_grad():
            for parameter in module.policy.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
                    parameter.grad = None
        return {"learning_rate": torch.tensor(rate), "grad_norm": torch.tensor(0.0)}

    def watched(batch, **how):
        found.append(logprobs_of(module, module.policy, groups[0]).detach())
        updates.append(update(batch, **how))
        return updates[-1]

    monkeypatch.setattr(module, "step_optimizer", step)
    monkeypatch.setattr(module, "update", watched)
    groups, collected = module._collect(rollout, rewards, is_last_batch=is_last)
    if groups is None:
        return [], [], collected
    num_updates, metrics = module._learn_from(*groups)
    assert num_updates == len(updates)
    return updates, found, {**collected, **metrics}


@pytest.mark.parametrize("old_logprobs", ["policy", "sampler"])
def test_updates_use_the_ratio_to_the_old_logprobs(parts, rollout, monkeypatch, old_logprobs):
    module = make_module(
        parts,
        num_updates=3,
        old_logprobs=old_logprobs,
        reduction="sequence_mean",
        clip_low=0.02,
        clip_high=0.03,
        micro_batch_size=2,
    )
    updates, found, logged = take_steps(module, rollout, REWARDS, monkeypatch, rate=0.05)
    advantages = module.advantage(REWARDS, group_size=4)
    old = found[0] if old_logprobs == "policy" else rollout.sampler_logprobs
    is_clipped = False
    for totals, logprobs in zip(updates, found, strict=True):
        expected = 0.0
        for n in range(12):
            length = int(rollout.completion_mask[n].sum())
            for t in range(length):
                ratio = float((logprobs[n, t] - old[n, t]).exp())
                kept = min(max(ratio, 0.98), 1.03)
                is_clipped |= kept != ratio
                advantage = float(advantages[n])
                expected -= min(ratio * advantage, kept * advantage) / length / 12
        assert float(totals["loss"]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert is_clipped, "the test needs a clipped ratio"
    assert float(updates[0]["importance_ratio"]) == pytest.approx(1, abs=1e-5)
    assert abs(float(updates[2]["importance_ratio"]) - 1) > 1e-4
    mean = sum(float(totals["loss"]) for totals in updates) / 3
    assert float(logged["loss"]) == pytest.approx(mean)
    # Only the first update logs the gap between sampler and policy.
    assert ["sampler_gap" in totals for totals in updates] == [True, False, False]
    assert 0 < float(logged["policy/sampler_gap"]) < 1e-5


def test_updates_stop_at_max_steps(parts, rollout, monkeypatch):
    module = make_module(parts, num_updates=3)
    module._trainer.fit_loop.epoch_loop.max_steps = 2
    updates, _, _ = take_steps(module, rollout, REWARDS, monkeypatch)
    assert len(updates) == 2


def test_the_schedule_counts_every_update(parts, monkeypatch):
    module = make_module(parts, num_updates=3)
    trainer = module._trainer
    monkeypatch.setattr(type(trainer), "estimated_stepping_batches", 10)
    trainer.fit_loop.epoch_loop.max_steps = -1
    assert module.num_optimizer_steps() == 30
    trainer.fit_loop.epoch_loop.max_steps = 25
    assert module.num_optimizer_steps() == 25


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_in_reward_is_subtracted_before_the_advantages(parts, rollout, monkeypatch, estimator):
    module = make_module(
        parts, kl_coef=0.3, kl_in="reward", kl_estimator=estimator, micro_batch_completions=3
    )
    with torch.no_grad():
        module.reference.model.lm_head.weight.mul_(1.05)
    policy = logprobs_of(module, module.policy, rollout).detach()
    reference = logprobs_of(module, module.reference, rollout).detach()
    paid = REWARDS.clone()
    for n in range(12):
        for t in range(int(rollout.completion_mask[n].sum())):
            gap = float(policy[n, t] - reference[n, t])
            paid[n] -= 0.3 * (gap if estimator == "k1" else torch.tensor(-gap).expm1().item() + gap)
    prepared = module.prepare(rollout, REWARDS)
    expected = module.advantage(paid, group_size=4)
    torch.testing.assert_close(prepared.advantages, expected, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(prepared.advantages, module.advantage(REWARDS, group_size=4))
    # The loss has no KL term in this case.
    totals = module.update(prepared)
    other = make_module(parts)
    without = learn(other, rollout, prepared.advantages)
    assert float(totals["loss"]) == pytest.approx(float(without["loss"]), rel=1e-9)


def test_mask_truncated_removes_unfinished_completions_from_the_loss(parts, rollout):
    assert 0 < int(rollout.is_finished.sum()) < 12, (
        "the test needs finished and unfinished completions"
    )
    module = make_module(parts, mask_truncated=True, micro_batch_size=2)
    advantages = torch.linspace(-1, 1, 12, dtype=torch.float64)
    totals = learn(module, rollout, advantages)
    kept = [n for n in range(12) if rollout.is_finished[n]]
    lengths = rollout.completion_mask.sum(1).tolist()
    expected = -sum(float(advantages[n]) * lengths[n] for n in kept) / sum(lengths[n] for n in kept)
    assert float(totals["loss"]) == pytest.approx(expected, rel=1e-6)


def test_step_waits_for_enough_groups_with_different_rewards(parts, rollout, monkeypatch):
    resampling = FlatGroupResampling(max_batches=4)
    module = make_module(parts, resample_flat_groups=resampling, micro_batch_size=3)
    flat = torch.tensor([0.0, 1.0, 0.5, 0.2, *[0.3] * 8], dtype=torch.float64)
    updates, _, logged = take_steps(module, rollout, flat, monkeypatch)
    assert (updates, logged) == ([], {})
    assert take_steps(module, rollout, flat, monkeypatch) == ([], [], {})
    assert resampling.num_batches == 2
    updates, _, logged = take_steps(module, rollout, REWARDS, monkeypatch)
    assert float(logged["sampling/batches"]) == 3
    assert float(logged["sampling/kept_groups"]) == pytest.approx(5 / 9)
    assert len(updates) == 1
    assert resampling.num_batches == 0


def test_prompts_repeated_within_a_step_get_other_seeds(parts, rollout, monkeypatch):
    resampling = FlatGroupResampling(max_batches=4)
    module = make_module(parts, resample_flat_groups=resampling)
    seeds = []
    monkeypatch.setattr(module.rollout, "generate", lambda _, **given: seeds.append(given["seed"]))
    for _ in range(3):
        module._sample(rollout.prompts)
        resampling.add(rollout, REWARDS)
    assert len(set(seeds)) == 3


def test_full_rank_waits_for_the_others(parts, rollout, monkeypatch):
    module = make_module(parts, resample_flat_groups=FlatGroupResampling(max_batches=4))
    theirs = iter([0.0])  # is the other rank full?
    monkeypatch.setattr(type(module._trainer), "world_size", 2)
    monkeypatch.setattr(
        module._trainer.strategy,
        "all_gather",
        lambda mine: torch.stack([mine, torch.tensor(next(theirs))]),
    )
    assert module._collect(rollout, REWARDS, is_last_batch=False) == (None, {})
    assert module.resampling.is_full
    theirs = iter([1.0, 5.0])
    assert [module._least(3), module._least(3)] == [1, 3]


def test_waiting_groups_are_trained_on_at_the_epochs_end(parts, rollout, monkeypatch):
    resampling = FlatGroupResampling(max_batches=4)
    module = make_module(parts, resample_flat_groups=resampling)
    flat = torch.tensor([0.0, 1.0, 0.5, 0.2, *[0.3] * 8], dtype=torch.float64)
    updates, found, logged = take_steps(module, rollout, flat, monkeypatch, is_last=True)
    assert len(updates) == 1
    assert len(found[0]) == 4, "expected only the group with different rewards"
    assert resampling.num_batches == 0
    assert float(logged["sampling/batches"]) == 1


def test_batch_std_is_computed_over_all_ranks():
    theirs = torch.tensor([3.0, 5.0, 1.0, 1.0])
    mine = torch.tensor([0.0, 1.0])
    advantage = functools.partial(
        group_advantages, baseline="group_mean", scale="batch_std", eps=0.0
    )
    got = advantages_of_rank(advantage, [theirs, mine], group_size=2, rank=1)
    std = torch.tensor([3.0, 5.0, 1.0, 1.0, 0.0, 1.0]).std()
    torch.testing.assert_close(got, torch.tensor([-0.5, 0.5]) / std)


def test_scoring_fps_changes_the_logprobs(parts, rollout):
    true, assumed = make_module(parts), make_module(parts, scoring_fps=0.5)
    rates = rollout.prompts.sampled_fps
    assert not torch.allclose(rates, torch.full_like(rates, 0.5))
    one = logprobs_of(true, true.policy, rollout).detach()
    other = logprobs_of(assumed, assumed.policy, rollout).detach()
    assert float((one - other).abs().max()) > 1e-4
    # The rollout keeps the sampled frame rate.
    assert torch.equal(rollout.prompts.sampled_fps, rates)
