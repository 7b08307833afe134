"""Tests of dynamic sampling: the groups that form a training step."""

import pytest
import torch
from helpers.tiny_policy import make_parts, make_rollout, sample_with

from tvg.training.resampling import FlatGroupResampling

GROUP = 2


@pytest.fixture(scope="module")
def sample(tiny_checkpoint, tiny_world):
    parts = make_parts(tiny_checkpoint, tiny_world)

    def sampled(num):
        return sample_with(
            make_rollout(),
            policy=parts.policy,
            tokenizer=parts.tokenizer,
            prompts=parts.batch(num),
            group_size=GROUP,
            seed=1,
        )

    return sampled


def qids(rollout):
    return [example.qid for example in rollout.prompts.examples]


def test_step_waits_until_its_batch_is_full(sample):
    resampling, rollout = FlatGroupResampling(max_batches=9), sample(3)
    named = qids(rollout)
    resampling.add(rollout, torch.tensor([0.0, 1.0, 0.5, 0.5, 0.0, 0.0]))
    assert not resampling.is_full
    resampling.add(rollout, torch.tensor([0.1, 0.1, 0.2, 0.9, 0.3, 0.4]))
    assert resampling.is_full
    assert resampling.kept_share == 0.5
    taken, rewards = resampling.take(num=resampling.num_ready, pad_id=0)
    assert qids(taken) == [named[0], named[1], named[2]]
    assert rewards.tolist() == pytest.approx([0.0, 1.0, 0.2, 0.9, 0.3, 0.4])
    assert taken.texts == [rollout.texts[row] for row in (0, 1, 2, 3, 4, 5)]
    assert (resampling.num_batches, resampling.num_groups) == (0, 0)


def test_surplus_groups_are_dropped(sample):
    resampling, rollout = FlatGroupResampling(max_batches=9), sample(3)
    for _ in range(2):
        resampling.add(rollout, torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0]))
    assert resampling.is_full
    taken, _ = resampling.take(num=resampling.num_ready, pad_id=0)
    assert len(taken.prompts) == 3
    resampling.add(rollout, torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    assert not resampling.is_full, "the fourth group of the previous step was kept"


def test_short_last_batch_needs_only_one_group_per_prompt(sample):
    resampling = FlatGroupResampling(max_batches=9)
    resampling.add(sample(1), torch.tensor([0.0, 1.0]))
    assert resampling.is_full


def test_resampling_stops_after_max_batches(sample):
    resampling, rollout = FlatGroupResampling(max_batches=2), sample(2)
    resampling.add(rollout, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert not resampling.is_exhausted
    resampling.add(rollout, torch.zeros(4))
    assert resampling.is_exhausted
    assert not resampling.is_full
    taken, _ = resampling.take(num=resampling.num_ready, pad_id=0)
    assert qids(taken) == qids(rollout)[1:], "expected only the group with different rewards"


def test_take_returns_only_the_requested_number_of_groups(sample):
    resampling, rollout = FlatGroupResampling(max_batches=9), sample(3)
    resampling.add(rollout, torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]))
    assert resampling.num_ready == 3
    taken, rewards = resampling.take(num=2, pad_id=0)
    assert qids(taken) == qids(rollout)[:2]
    assert len(rewards) == 4


def test_step_with_only_flat_groups_contains_one_group(sample):
    resampling, rollout = FlatGroupResampling(max_batches=1), sample(3)
    resampling.add(rollout, torch.ones(6))
    assert resampling.is_exhausted
    taken, rewards = resampling.take(num=resampling.num_ready, pad_id=0)
    assert (len(taken.prompts), rewards.tolist()) == (1, [1.0, 1.0])


def test_max_batches_below_1_is_refused():
    with pytest.raises(ValueError, match=r"objective\.resample_flat_groups\.max_batches.*0"):
        FlatGroupResampling(max_batches=0)
