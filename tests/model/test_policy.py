"""Tests that the policy scores tokens like the plain model, with the sampled frame rate."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny_policy import make_parts, make_rollout, sample_with

from tvg.core.positions import mrope_position_ids


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world)


def test_logprobs_equal_the_plain_model(parts):
    prompts = parts.batch(3)
    rollout = sample_with(
        make_rollout(),
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        prompts=prompts,
        group_size=2,
        seed=0,
    )
    with torch.no_grad():
        got, entropy = parts.policy(
            prompts,
            rollout.completion_ids,
            rollout.completion_mask,
            group_size=2,
            temperature=1.0,
        )
    logits = plain_logits(parts.policy, prompts, rollout)
    logits[..., parts.policy.suppressed_ids] = -torch.inf
    all_logprobs = logits.log_softmax(-1)
    expected = all_logprobs.gather(-1, rollout.completion_ids.unsqueeze(-1)).squeeze(-1)
    mask = rollout.completion_mask
    torch.testing.assert_close(got, expected * mask, atol=1e-5, rtol=0)
    expected_entropy = -(all_logprobs.exp() * all_logprobs.nan_to_num(neginf=0)).sum(-1)
    torch.testing.assert_close(entropy, expected_entropy * mask, atol=1e-4, rtol=0)


def plain_logits(policy, prompts, rollout):
    """Returns logits of transformers' forward pass with the video, row by row without padding."""
    rows = []
    for n, ids in enumerate(rollout.completion_ids):
        prompt = prompts.rows(n // 2, n // 2 + 1)
        keep = prompt.attention_mask[0].bool()
        positions = policy.position_ids(prompt)[:, :, keep]
        last = positions[..., -1:] + 1
        after = last + torch.arange(len(ids))
        out = policy.model(
            input_ids=torch.cat([prompt.input_ids[:, keep], ids[None]], dim=1),
            pixel_values_videos=prompt.pixel_values_videos,
            video_grid_thw=prompt.video_grid_thw,
            position_ids=torch.cat([positions, after], dim=-1),
        )
        rows.append(out.logits[0, -len(ids) - 1 : -1].float().detach())
    return torch.stack(rows)


def test_positions_use_the_sampled_frame_rate(parts):
    prompts = parts.batch(2)
    faster = replace(prompts, sampled_fps=prompts.sampled_fps * 2)
    config = parts.policy.model.config
    expected = mrope_position_ids(
        prompts.input_ids,
        prompts.attention_mask,
        video_grid_thw=prompts.video_grid_thw,
        second_per_grid_s=2 / prompts.sampled_fps,
        vision_start_id=config.vision_start_token_id,
        video_token_id=config.video_token_id,
        spatial_merge=2,
        tokens_per_second=config.vision_config.tokens_per_second,
    )
    assert torch.equal(parts.policy.position_ids(prompts), expected)
    assert not torch.equal(parts.policy.position_ids(faster), expected)


def test_each_clip_is_embedded_in_its_own_prompt(parts):
    prompts = parts.batch(3)
    together = parts.policy.embed_prompts(prompts)
    for i in range(3):
        alone = parts.policy.embed_prompts(prompts.rows(i, i + 1))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


def test_gradients_reach_vision_merger_and_language(parts):
    prompts = parts.batch(2)
    rollout = sample_with(
        make_rollout(),
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        prompts=prompts,
        group_size=1,
        seed=0,
    )
    parts.policy.zero_grad()
    logprobs, _ = parts.policy(
        prompts, rollout.completion_ids, rollout.completion_mask, group_size=1, temperature=1.0
    )
    logprobs.sum().backward()
    for name, parameter in parts.policy.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    parts.policy.zero_grad()
