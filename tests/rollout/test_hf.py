"""Tests of sampling with `generate`: tokens, log-probabilities, masks and settings."""

import pytest
import torch
from helpers.tiny_policy import make_parts, make_rollout, sample_with

from tvg.rollout.in_process import completion_mask, sampling_mode


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world)


def sample(parts, rollout, *, num=2, group_size=3, seed=0):
    return sample_with(
        rollout,
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        prompts=parts.batch(num),
        group_size=group_size,
        seed=seed,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logprobs_equal_those_of_the_trainer(parts, temperature):
    rollout = make_rollout(temperature=temperature)
    sampled = sample(parts, rollout)
    with torch.no_grad():
        logprobs, _ = parts.policy(
            sampled.prompts,
            sampled.completion_ids,
            sampled.completion_mask,
            group_size=3,
            temperature=temperature,
        )
    torch.testing.assert_close(sampled.sampler_logprobs, logprobs, atol=1e-4, rtol=0)
    assert (sampled.sampler_logprobs[sampled.completion_mask.bool()] < 0).all()


def test_sampling_uses_the_seed_and_not_the_global_state(parts):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = sample(parts, make_rollout(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    again = sample(parts, make_rollout(), seed=1)
    other = sample(parts, make_rollout(), seed=2)
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert not torch.equal(first.completion_ids, other.completion_ids)


def test_generation_config_of_the_checkpoint_is_ignored(parts):
    before = sample(parts, make_rollout(), seed=1)
    config = parts.policy.model.generation_config
    config.top_k, config.temperature, config.do_sample = 1, 0.1, True
    try:
        after = sample(parts, make_rollout(), seed=1)
    finally:
        config.top_k, config.temperature, config.do_sample = 50, 1.0, False
    assert torch.equal(before.completion_ids, after.completion_ids)


def test_vision_tokens_are_never_sampled(parts):
    head = parts.policy.model.lm_head.weight
    saved = head.detach().clone()
    suppressed = parts.policy.suppressed_ids
    with torch.no_grad():  # without suppression they would almost certainly be sampled
        head.mul_(0.01)
        head[suppressed] = saved.abs().mean() * 50
    try:
        sampled = sample(parts, make_rollout(max_new_tokens=20))
    finally:
        with torch.no_grad():
            head.copy_(saved)
    assert not torch.isin(sampled.completion_ids, suppressed).any()
    assert torch.isfinite(sampled.sampler_logprobs).all()


def test_greedy_tokens_equal_transformers_generate(parts):
    sampled = sample(parts, make_rollout(), group_size=1)
    greedy = sample(parts, make_rollout().greedy(), group_size=1, seed=5)
    assert torch.equal(
        greedy.completion_ids, sample(parts, make_rollout().greedy(), group_size=1).completion_ids
    )
    prompts = sampled.prompts
    out = parts.policy.model.generate(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask,
        position_ids=parts.policy.position_ids(prompts),
        pixel_values_videos=prompts.pixel_values_videos,
        video_grid_thw=prompts.video_grid_thw,
        max_new_tokens=8,
        do_sample=False,
        suppress_tokens=parts.policy.suppressed_ids.tolist(),
        eos_token_id=parts.policy.eos_ids,
        pad_token_id=parts.policy.pad_id,
    )[:, prompts.input_ids.shape[1] :]
    assert torch.equal(greedy.completion_ids, out)


def test_several_calls_return_the_tokens_of_one_call(parts):
    greedy = make_rollout(temperature=0.0)
    whole = sample(parts, greedy, num=3, group_size=2)
    split = sample(parts, make_rollout(temperature=0.0, prompts_per_call=1), num=3, group_size=2)
    assert torch.equal(whole.completion_ids, split.completion_ids)
    torch.testing.assert_close(whole.sampler_logprobs, split.sampler_logprobs, atol=1e-5, rtol=0)


def test_the_mask_ends_with_the_first_eos():
    ids = torch.tensor([[5, 9, 9, 0], [5, 6, 7, 8], [8, 5, 9, 5]])
    mask, is_finished = completion_mask(ids, eos_ids=[9, 8])
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert is_finished.tolist() == [True, True, True]
    mask, is_finished = completion_mask(ids[1:2], eos_ids=[9])
    assert mask.tolist() == [[1, 1, 1, 1]]
    assert is_finished.tolist() == [False]


def test_text_and_logprobs_stop_at_the_first_eos(parts):
    saved = parts.policy.eos_ids
    parts.policy.eos_ids = list(range(0, 640, 8))  # frequent end tokens: lengths differ
    try:
        sampled = sample(parts, make_rollout(max_new_tokens=30), group_size=8)
    finally:
        parts.policy.eos_ids = saved
    lengths = sampled.completion_mask.sum(1)
    assert lengths.min() < lengths.max()
    for row, length in enumerate(lengths.tolist()):
        assert (sampled.completion_ids[row, length:] == parts.policy.pad_id).all()
        assert (sampled.sampler_logprobs[row, length:] == 0).all()
        kept = sampled.completion_ids[row, :length]
        assert sampled.texts[row] == parts.tokenizer.decode(kept, skip_special_tokens=True)


def checkpointing(model):
    key = "gradient_checkpointing"
    return [getattr(module, key) for module in model.modules() if hasattr(module, key)]


def test_sampling_mode_restores_training_mode_and_checkpointing(parts):
    model = parts.policy.model
    model.gradient_checkpointing_enable({"use_reentrant": False})
    parts.policy.train()
    flags = [
        m.gradient_checkpointing for m in model.modules() if hasattr(m, "gradient_checkpointing")
    ]
    assert any(flags)
    with sampling_mode(parts.policy):
        assert not parts.policy.training
        assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert parts.policy.training
    after = [
        m.gradient_checkpointing for m in model.modules() if hasattr(m, "gradient_checkpointing")
    ]
    assert after == flags
    model.gradient_checkpointing_disable()
    parts.policy.eval()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "rollout.max_new_tokens.*0"),
        ({"temperature": -1.0}, "rollout.temperature"),
        ({"top_p": 0.0}, "rollout.top_p"),
        ({"top_k": -1}, "rollout.top_k"),
        ({"prompts_per_call": 0}, "rollout.prompts_per_call"),
    ],
)
def test_settings_out_of_range_name_their_key(changes, message):
    with pytest.raises(ValueError, match=message):
        make_rollout(**changes)
