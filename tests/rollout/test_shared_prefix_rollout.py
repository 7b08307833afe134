"""Tests of shared-prefix sampling against `generate` on copies of the prompts."""

from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_policy import make_parts, make_rollout, sample_with

from tvg.rollout import shared_prefix
from tvg.rollout.shared_prefix import SharedPrefixEngine

SOME_ENDS = list(range(0, 540, 12))  # frequent end tokens: lengths differ


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    made.policy.double()  # rounding must not change a draw
    made.policy.eos_ids = SOME_ENDS
    return made


@pytest.fixture(scope="module")
def prompts(parts):
    """Four prompts of at least three lengths; the shorter ones are padded on the left."""
    batch = parts.batch(4)
    assert len(set(batch.attention_mask.sum(1).tolist())) >= 3
    return batch


def make_shared(**changes):
    return make_rollout(SharedPrefixEngine, **{"max_new_tokens": 12, **changes})


def make_hf(**changes):
    return make_rollout(**{"max_new_tokens": 12, **changes})


def sample(parts, rollout, prompts, *, group_size=4, seed=0):
    return sample_with(
        rollout,
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        prompts=prompts,
        group_size=group_size,
        seed=seed,
    )


def score(parts, sampled, temperature):
    """Returns the trainer's log-probabilities of the sampled tokens."""
    return parts.policy(
        sampled.prompts,
        sampled.completion_ids,
        sampled.completion_mask,
        group_size=sampled.group_size,
        temperature=temperature,
    )[0]


def tokens_of(sampled):
    """Returns the completions of each query, without padding."""
    size = sampled.group_size
    rows = [
        ids[keep.bool()].tolist()
        for ids, keep in zip(sampled.completion_ids, sampled.completion_mask, strict=True)
    ]
    qids = [example.qid for example in sampled.prompts.examples]
    return {qid: rows[i * size : (i + 1) * size] for i, qid in enumerate(qids)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.6, "top_k": 5},
        {"top_p": 0.6},
        {"top_p": 0.9, "top_k": 20, "temperature": 1.3},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_tokens_equal_those_of_generate_on_copies(parts, prompts, settings):
    ours = sample(parts, make_shared(**settings), prompts)
    theirs = sample(parts, make_hf(**settings), prompts)
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    assert torch.equal(ours.completion_mask, theirs.completion_mask)
    assert torch.equal(ours.is_finished, theirs.is_finished)
    assert ours.texts == theirs.texts
    torch.testing.assert_close(ours.sampler_logprobs, theirs.sampler_logprobs, atol=1e-5, rtol=0)
    num_lengths = len(ours.completion_mask.sum(1).unique())
    assert num_lengths > 2 or settings.get("temperature") == 0, (
        "the test needs completions of different lengths"
    )


def test_greedy_tokens_equal_transformers_generate(parts, prompts):
    greedy = sample(parts, make_shared().greedy(), prompts, group_size=1)
    out = parts.policy.model.generate(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask,
        position_ids=parts.policy.position_ids(prompts),
        pixel_values_videos=prompts.pixel_values_videos,
        video_grid_thw=prompts.video_grid_thw,
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=parts.policy.suppressed_ids.tolist(),
        eos_token_id=parts.policy.eos_ids,
        pad_token_id=parts.policy.pad_id,
    )[:, prompts.input_ids.shape[1] :]
    width = out.shape[1]
    assert torch.equal(greedy.completion_ids[:, :width], out)
    assert not greedy.completion_mask[:, width:].any()


@pytest.mark.parametrize("prompts_per_call", [1, 3])
def test_tokens_do_not_depend_on_prompts_per_call(parts, prompts, prompts_per_call):
    whole = sample(parts, make_shared(), prompts)
    split = sample(parts, make_shared(prompts_per_call=prompts_per_call), prompts)
    assert torch.equal(whole.completion_ids, split.completion_ids)
    torch.testing.assert_close(whole.sampler_logprobs, split.sampler_logprobs, atol=1e-5, rtol=0)


def test_completions_do_not_depend_on_their_batch(parts, prompts):
    whole = tokens_of(sample(parts, make_shared(), prompts))
    alone = [tokens_of(sample(parts, make_shared(), prompts.rows(i, i + 1))) for i in range(4)]
    assert {qid: rows for one in alone for qid, rows in one.items()} == whole
    # Another order, with other padding. A group of two equals the first two of four.
    turned = parts.collator([parts.dataset[index] for index in (5, 3, 1, 0)])
    other = tokens_of(sample(parts, make_shared(), turned, group_size=2))
    assert len(other.keys() & whole.keys()) == 3
    assert all(other[qid] == whole[qid][:2] for qid in other.keys() & whole.keys())


def test_other_seeds_and_repeated_queries_give_other_tokens(parts, prompts):
    one = prompts.rows(0, 1)
    first, other = (sample(parts, make_shared(), one, seed=seed).texts for seed in (0, 1))
    twice = sample(parts, make_shared(), one.repeat(2)).texts
    assert twice[:4] == first
    assert first != other
    assert twice[4:] != first


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("forward_by", ["shared_prefix", "repeated"])
def test_recorded_logprobs_equal_those_of_the_trainer(
    parts, prompts, temperature, forward_by, monkeypatch
):
    monkeypatch.setattr(parts.policy, "forward_by", forward_by)
    sampled = sample(parts, make_shared(temperature=temperature, top_k=30), prompts)
    with torch.no_grad():
        logprobs = score(parts, sampled, temperature)
    torch.testing.assert_close(sampled.sampler_logprobs.double(), logprobs, atol=1e-5, rtol=0)
    assert (sampled.sampler_logprobs[sampled.completion_mask.bool()] < 0).all()


def calls_of_the_language_model(parts, rollout, prompts):
    """Returns the number of tokens of each forward pass, and the sampled rollout."""
    sizes = []
    hook = parts.policy.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    try:
        return sizes, sample(parts, rollout, prompts)
    finally:
        hook.remove()


def test_each_prompt_runs_once_and_sampling_stops_at_the_end(parts, prompts):
    sizes, sampled = calls_of_the_language_model(parts, make_shared(max_new_tokens=200), prompts)
    longest = int(sampled.completion_mask.sum(1).max())
    assert sampled.is_finished.all()
    assert longest < 200
    assert sampled.completion_ids.shape == (16, longest)
    # The last token of the longest completion needs no forward pass.
    assert sizes == [int(prompts.attention_mask.sum())] + [16] * (longest - 1)
    sizes, _ = calls_of_the_language_model(parts, make_shared(max_new_tokens=1), prompts)
    assert len(sizes) == 1


def test_each_clip_is_encoded_once(parts, prompts):
    seen = []
    hook = parts.policy.model.model.visual.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape[0])
    )
    try:
        sample(parts, make_shared(), prompts)
    finally:
        hook.remove()
    assert seen == [int(prompts.video_grid_thw.prod(-1).sum())]


def test_cached_features_give_the_same_tokens_as_pixels(parts, prompts, monkeypatch):
    expected = sample(parts, make_shared(), prompts)
    for parameter in parts.policy.model.model.visual.parameters():
        monkeypatch.setattr(parameter, "requires_grad", False)
    encoded = parts.policy.encode_clips(prompts)
    assert encoded.pixel_values_videos is None
    sampled = sample(parts, make_shared(), encoded)
    assert torch.equal(sampled.completion_ids, expected.completion_ids)


def test_gpu_checks_for_the_end_every_eight_steps():
    on_gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"), all=lambda: True)
    asked = [step for step in range(24) if shared_prefix._is_over(on_gpu, step)]
    assert asked == [7, 15, 23]
    assert shared_prefix._is_over(torch.tensor([True, True]), 0)
    assert not shared_prefix._is_over(torch.tensor([True, False]), 7)


def test_late_check_for_the_end_keeps_the_results(parts, prompts, monkeypatch):
    expected = sample(parts, make_shared(max_new_tokens=60), prompts)
    monkeypatch.setattr(
        shared_prefix, "_is_over", lambda is_finished, step: step % 8 == 7 and is_finished.all()
    )
    late = sample(parts, make_shared(max_new_tokens=60), prompts)
    width = expected.completion_ids.shape[1]
    assert late.completion_ids.shape[1] >= width
    assert torch.equal(late.completion_ids[:, :width], expected.completion_ids)
    assert int(late.completion_mask[:, width:].sum()) == 0
    assert late.texts == expected.texts


def test_training_mode_and_checkpointing_are_restored(parts, prompts):
    expected = sample(parts, make_shared(), prompts)
    policy = parts.policy
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()
    try:
        sampled = sample(parts, make_shared(), prompts)
        assert policy.training
        assert policy.model.is_gradient_checkpointing
    finally:
        policy.model.gradient_checkpointing_disable()
        policy.eval()
    assert torch.equal(sampled.completion_ids, expected.completion_ids)


@pytest.mark.parametrize("weights", ["float32", "autocast", "bfloat16"])
def test_logprobs_agree_with_the_trainer_in_each_precision(tiny_checkpoint, tiny_world, weights):
    parts = make_parts(tiny_checkpoint, tiny_world)
    if weights == "bfloat16":
        parts.policy.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights == "autocast"):
        sampled = sample(parts, make_shared(), parts.batch(3))
        with torch.no_grad():
            logprobs = score(parts, sampled, 1.0)
    mask = sampled.completion_mask.bool()
    assert torch.isfinite(sampled.sampler_logprobs).all()
    gap = (sampled.sampler_logprobs - logprobs).abs()[mask]
    assert float(gap.max()) < (1e-5 if weights == "float32" else 0.15)
    assert float(gap.mean()) < (2e-6 if weights == "float32" else 0.02)
