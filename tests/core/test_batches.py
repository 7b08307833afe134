"""Tests that splitting and joining rollouts keeps every value."""

from dataclasses import fields

import pytest
import torch
from helpers.tiny_policy import make_parts, make_rollout, sample_with

from tvg.core.batches import join_prompts, join_rollouts
from tvg.types import PromptBatch, RolloutBatch

GROUP = 3


@pytest.fixture(scope="module")
def sampled(tiny_checkpoint, tiny_world):
    parts = make_parts(tiny_checkpoint, tiny_world)
    parts.policy.eos_ids = list(range(0, 640, 12))
    rollout = sample_with(
        make_rollout(),
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        prompts=parts.batch(4),
        group_size=GROUP,
        seed=3,
    )
    assert len(set(rollout.completion_mask.sum(1).tolist())) > 1, "completions of equal length"
    assert len(set(rollout.prompts.attention_mask.sum(1).tolist())) > 1, "prompts of equal length"
    return rollout


def trimmed(rollout, pad_id):
    """Returns a rollout without the padding that all its rows share."""
    first = int(rollout.prompts.attention_mask.argmax(1).min())
    longest = int(rollout.completion_mask.sum(1).max())
    prompts = PromptBatch(
        **{
            f.name: getattr(rollout.prompts, f.name)
            for f in fields(PromptBatch)
            if f.name not in ("input_ids", "attention_mask")
        },
        input_ids=rollout.prompts.input_ids[:, first:],
        attention_mask=rollout.prompts.attention_mask[:, first:],
    )
    values = {f.name: getattr(rollout, f.name) for f in fields(RolloutBatch)}
    for name in ("completion_ids", "completion_mask", "sampler_logprobs"):
        values[name] = values[name][:, :longest]
    return RolloutBatch(**{**values, "prompts": prompts})


def assert_same(one, other):
    assert type(one) is type(other)
    for field in fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == its.dtype, field.name
            assert torch.equal(mine, its), field.name
        elif isinstance(mine, PromptBatch):
            assert_same(mine, its)
        else:
            assert mine == its, field.name


def test_splitting_and_joining_groups_restores_the_batch(sampled):
    pad_id = 0
    groups = [sampled.select(range(i, i + 1), range(GROUP)) for i in range(4)]
    joined = join_rollouts([trimmed(group, pad_id) for group in groups], pad_id=pad_id)
    expected = RolloutBatch(
        **{
            **{f.name: getattr(sampled, f.name) for f in fields(RolloutBatch)},
            "prompts": sampled.prompts,
        }
    )
    # Padding values may differ.
    ids = joined.completion_ids.where(joined.completion_mask.bool(), expected.completion_ids)
    prompt_ids = joined.prompts.input_ids.where(
        joined.prompts.attention_mask.bool(), expected.prompts.input_ids
    )
    assert torch.equal(ids, expected.completion_ids)
    assert torch.equal(prompt_ids, expected.prompts.input_ids)
    for name in ("completion_mask", "sampler_logprobs", "is_finished"):
        assert torch.equal(getattr(joined, name), getattr(expected, name)), name
    assert joined.texts == expected.texts
    assert joined.prompts.examples == expected.prompts.examples
    for name in ("attention_mask", "pixel_values_videos", "video_grid_thw", "sampled_fps"):
        assert torch.equal(getattr(joined.prompts, name), getattr(expected.prompts, name)), name
    assert torch.equal(joined.prompts.duration_s, expected.prompts.duration_s)


def test_splitting_joined_batches_restores_them(sampled):
    two = [sampled.select(range(0, 2), range(GROUP)), sampled.select(range(2, 4), range(GROUP))]
    joined = join_rollouts(two[::-1], pad_id=0)
    assert_same(joined.select(range(0, 2), range(GROUP)), two[1])
    assert_same(joined.select(range(2, 4), range(GROUP)), two[0])


def test_every_field_is_joined(sampled):
    """Fails if `join_*` forgets a new field, because the field then has its default value."""
    joined = join_rollouts([sampled], pad_id=0)
    assert_same(joined, sampled)
    batch = sampled.prompts
    marked = PromptBatch(
        **{
            **{f.name: getattr(batch, f.name) for f in fields(PromptBatch)},
            "unreadable": ["a"],
            "pixel_values_videos": None,
            "video_features": torch.ones(2, 3),
        }
    )
    assert_same(join_prompts([marked], pad_id=0), marked)


def test_joining_pixels_with_features_is_refused(sampled):
    batch = sampled.prompts
    encoded = PromptBatch(
        **{
            **{f.name: getattr(batch, f.name) for f in fields(PromptBatch)},
            "pixel_values_videos": None,
            "video_features": torch.ones(2, 3),
        }
    )
    with pytest.raises(AssertionError, match="pixels and features"):
        join_prompts([batch, encoded], pad_id=0)
