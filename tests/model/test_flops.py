"""Tests of the FLOPs of a training step with hand counts for a tiny model."""

import pytest
import torch
from helpers.sizes import BY_HAND
from helpers.tiny_policy import make_parts, make_rollout, sample_with
from torch.utils.flop_counter import FlopCounterMode

from tvg.model.flops import (
    StepWork,
    rollout_flops,
    sampling_flops,
    step_flops,
    trunk_flops,
)
from tvg.model.shape import shape_of

SHAPE = BY_HAND


def work(**changes):
    settings = {
        "prompts": [10],
        "completions": [3, 1],
        "grids": [(2, 4, 6)],
        "is_encoded": False,
        "has_reference": True,
        "trains_language": True,
        "trains_merger": True,
        "trains_trunk": False,
    }
    return StepWork(**{**settings, **changes})


def test_parameter_counts_by_hand():
    assert SHAPE.attention_params == 2 * (4 + 2 + 2) + 4 * 2 == 24
    assert SHAPE.mlp_params == 30
    assert SHAPE.block_params == 4 * 9 + 3 * 3 * 4 == 72
    assert SHAPE.merger_params == 12 * 12 + 12 * 2 == 168


def test_trunk_flops_by_hand():
    # 48 patches pass the patch embedding (6 numbers to 3), then two blocks.
    products = 2 * 48 * (18 + 2 * 72)
    # One layer attends to complete frames of 24 patches, one to windows of 4 x 4 and 4 x 2.
    pairs = 2 * 24**2 + 2 * (16**2 + 8**2)
    assert trunk_flops(SHAPE, (2, 4, 6)) == products + 4 * 3 * pairs


def test_sampling_flops_by_hand():
    # Prefill: two full layers over 10 tokens. The last layer computes all keys and values, but
    # the rest only for one token.
    prefill = 2 * (2 * 54 * 10 + 8 * 10 + (54 - 8))
    prefill_pairs = 2 * 55 + 10
    # Two tokens of the first completion are fed back, with 11 and 12 keys. The second completion
    # is an EOS only, so no token of it is fed back.
    decode, decode_pairs = 2 * 3 * 54 * 2, 3 * (11 + 12)
    head = 2 * 7 * 2 * 4
    expected = prefill + decode + 4 * 4 * (prefill_pairs + decode_pairs) + head
    assert sampling_flops(SHAPE, [10], [3, 1]) == expected


def test_flops_of_each_stage_by_hand():
    found = step_flops(SHAPE, work())
    # The last layer computes keys and values of all 12 tokens (8 each). It computes the rest (46
    # each) for the prompt's last token and two completion tokens.
    products = 2 * (2 * 54 * 12 + 8 * 12 + 46 * 3)
    pairs = 4 * 4 * (2 * (55 + 11 + 12) + 10 + 11 + 12)
    merger, head = 2 * 168 * 12, 2 * 2 * 7 * 4
    assert found["vision"] == trunk_flops(SHAPE, (2, 4, 6))
    assert found["sampling"] == merger + sampling_flops(SHAPE, [10], [3, 1])
    assert found["policy"] == found["reference"] == merger + products + pairs + head
    assert found["backward"] == merger + 2 * (products + pairs + head)


def test_two_prompts_need_twice_the_flops_of_one():
    one = step_flops(SHAPE, work())
    two = step_flops(SHAPE, work(prompts=[10, 10], completions=[3, 1, 3, 1], grids=[(2, 4, 6)] * 2))
    assert two == {stage: 2 * flops for stage, flops in one.items()}


def test_skipped_stages_are_not_counted():
    whole = step_flops(SHAPE, work())
    encoded = step_flops(SHAPE, work(is_encoded=True, has_reference=False))
    assert encoded == {**whole, "vision": 0, "reference": 0}
    merger_alone = step_flops(SHAPE, work(trains_language=False))
    products = 2 * (2 * 54 * 12 + 8 * 12 + 46 * 3) + 2 * 2 * 7 * 4
    assert whole["backward"] - merger_alone["backward"] == products


def test_a_trained_trunk_is_counted_in_the_stages_that_run_it():
    trunk = trunk_flops(SHAPE, (2, 4, 6))
    frozen = step_flops(SHAPE, work())
    trained = step_flops(SHAPE, work(trains_trunk=True))
    assert trained["vision"] == 0
    for stage in ("sampling", "policy", "reference"):
        assert trained[stage] - frozen[stage] == trunk
    assert trained["backward"] - frozen["backward"] == 2 * trunk + 2 * 168 * 12


def test_forward_and_backward_match_torchs_flop_counter(tiny_checkpoint, tiny_world):
    """Compares the counts within bounds that allow for attention.

    torch's counter does not count the CPU's flash kernels, so only our count contains attention.
    """
    parts = make_parts(tiny_checkpoint, tiny_world)
    policy = parts.policy
    policy.model.model.visual.requires_grad_(False)
    policy.model.model.visual.merger.requires_grad_(True)
    prompts = policy.encode_clips(parts.batch(2))
    rollout = sample_with(
        make_rollout(),
        policy=policy,
        tokenizer=parts.tokenizer,
        prompts=prompts,
        group_size=3,
        seed=0,
    )
    with FlopCounterMode(display=False) as forward:
        logprobs, _ = policy(
            prompts,
            rollout.completion_ids,
            rollout.completion_mask,
            group_size=3,
            temperature=1.0,
        )
    with FlopCounterMode(display=False) as backward:
        logprobs.sum().backward()
    counted = policy_work(policy, rollout)
    found = step_flops(*counted)
    # The model also computes each completion's last token, which predicts nothing. The last layer
    # also computes queries and output projections of all prompt tokens. The backward pass computes
    # the logits again.
    assert found["policy"] < forward.get_total_flops() < 1.15 * found["policy"]
    assert 0.9 * found["backward"] < backward.get_total_flops() < 1.25 * found["backward"]
    with torch.no_grad():
        total = rollout_flops(policy, rollout, has_reference=True, is_encoded=True)
    assert total == pytest.approx(sum(found.values()))


def policy_work(policy, rollout):
    return shape_of(policy.model.config), StepWork(
        prompts=rollout.prompts.attention_mask.sum(1).tolist(),
        completions=rollout.completion_mask.sum(1).tolist(),
        grids=rollout.prompts.video_grid_thw.tolist(),
        is_encoded=True,
        has_reference=True,
        trains_language=True,
        trains_merger=True,
        trains_trunk=False,
    )
