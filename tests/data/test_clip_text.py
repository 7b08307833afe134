"""Tests of the text of a clip in a prompt: one placeholder run, or a time before each step."""

import pickle

import pytest
import torch
from helpers.completions import LENGTHS, completions, learn, worst_errors
from helpers.tiny_policy import make_parts, make_rollout, make_task

from tvg.data.collate import PromptCollator, step_times
from tvg.model.families import FAMILIES
from tvg.model.families.clip_text import (
    NumberedFrames,
    OneRun,
    TimedSteps,
    first_time,
    middle_time,
)
from tvg.rollout.hf import HFEngine
from tvg.rollout.shared_prefix import SharedPrefixEngine
from tvg.training.preflight import Preflight

PAD, START, END = "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
TIMES = [[0.0, 0.5], [1.0, 1.5], [2.0, 2.0]]


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    made.policy.double()
    return made


@pytest.fixture(scope="module")
def samples(parts):
    return [parts.dataset[index] for index in range(4)]


def batch_of(parts, samples, **changes):
    return PromptCollator(
        task=make_task(**changes), processor=parts.processor, family=parts.family
    )(samples)


@pytest.fixture(scope="module")
def timed(parts, samples):
    return batch_of(parts, samples, frame_times="{time_s:.1f}s")


def test_one_run_repeats_the_placeholder_for_every_token():
    assert OneRun()(num_steps=3, tokens_per_step=2, step_times_s=TIMES) == PAD * 6


def test_each_step_follows_the_time_of_its_first_frame():
    clip_text = TimedSteps(text="{time_s:.1f}s", time_of=first_time)
    steps = [f"{time}{START}{PAD}{PAD}{END}" for time in ("0.0s", "1.0s", "2.0s")]
    assert clip_text(num_steps=3, tokens_per_step=2, step_times_s=TIMES) == "".join(steps)
    assert clip_text.mark == START + PAD + END


def test_qwen3_writes_the_middle_time_of_each_step():
    assert [middle_time(times) for times in TIMES] == [0.25, 1.25, 2.0]
    qwen3 = FAMILIES["qwen3_vl"].clip_text
    assert qwen3(None)(num_steps=1, tokens_per_step=1, step_times_s=[[1.0, 1.5]]) == (
        f"<1.2 seconds>{START}{PAD}{END}"
    )
    own = qwen3("{time_s:.2f}: ")(num_steps=1, tokens_per_step=1, step_times_s=[[1.0, 1.5]])
    assert own == f"1.25: {START}{PAD}{END}"


def test_clip_text_of_each_family():
    asked = TimedSteps(text="{time_s}", time_of=first_time)
    middle = TimedSteps(text="<{time_s:.1f} seconds>", time_of=middle_time)
    expected = {
        "qwen2_vl": (OneRun(), asked),
        "qwen2_5_vl": (OneRun(), asked),
        "qwen3_vl": (middle, TimedSteps(text="{time_s}", time_of=middle_time)),
        "internvl": (NumberedFrames(text=None), NumberedFrames(text="{time_s}")),
    }
    found = {
        name: (family.clip_text(None), family.clip_text("{time_s}"))
        for name, family in FAMILIES.items()
    }
    assert found == expected


def test_estimated_text_tokens_per_step_of_each_family():
    found = {name: family.clip_text(None).step_tokens for name, family in FAMILIES.items()}
    assert found == {"qwen2_vl": 0, "qwen2_5_vl": 0, "qwen3_vl": 12, "internvl": 12}
    assert FAMILIES["qwen2_5_vl"].clip_text("{time_s}").step_tokens == 12


def test_the_processor_of_another_family_is_refused(parts):
    class LlavaProcessor:
        video_processor = parts.processor.video_processor

    expected = "type 'qwen2_5_vl': expected Qwen2_5_VLProcessor or .*, got LlavaProcessor"
    with pytest.raises(ValueError, match=expected):
        PromptCollator(task=make_task(), processor=LlavaProcessor(), family=parts.family)
    with pytest.raises(ValueError, match=r"Qwen3VLProcessor, got Qwen2_5_VLProcessor"):
        PromptCollator(task=make_task(), processor=parts.processor, family=FAMILIES["qwen3_vl"])


def test_a_pickled_collator_gives_the_same_batch(parts, samples):
    again = pickle.loads(pickle.dumps(parts.collator))
    ours, theirs = parts.collator(samples), again(samples)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(ours.pixel_values_videos, theirs.pixel_values_videos)


def test_step_times_repeat_the_last_frame_of_odd_clips():
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert step_times(times, 2) == [[0.0, 0.5], [1.0, 1.0]]
    assert step_times(times, 1) == [[0.0], [0.5], [1.0]]


def test_timed_prompts_differ_from_plain_ones_only_in_clip_text(parts, samples, timed):
    plain = batch_of(parts, samples)
    for sample, grid, rows in zip(samples, timed.video_grid_thw, range(4), strict=True):
        text, before = (
            parts.tokenizer.decode(b.input_ids[rows][b.attention_mask[rows].bool()])
            for b in (timed, plain)
        )
        run = PAD * int(grid[1:].prod() // 4)
        times = sample.clip.frame_times_s.tolist()[::2]
        steps = "".join(f"{time:.1f}s{START}{run}{END}" for time in times)
        assert text == before.replace(START + run * len(times) + END, steps)
        assert len(times) == grid[0] > 1
    assert torch.equal(timed.pixel_values_videos, plain.pixel_values_videos)


def test_a_query_that_contains_the_placeholder_is_refused(parts, samples):
    for query in (PAD, START + PAD + END):
        with pytest.raises(ValueError, match="in the prompt, as the place of the clip"):
            batch_of(parts, samples, template=f"{query} {{query}}", frame_times="{time_s:.1f}s")


def test_clip_features_keep_their_order_in_timed_prompts(parts, samples, timed):
    plain = batch_of(parts, samples)
    token = parts.policy.model.config.video_token_id
    with torch.no_grad():
        found, expected = (
            parts.policy.embed_prompts(b)[b.input_ids == token] for b in (timed, plain)
        )
    assert torch.equal(found, expected)


def test_positions_increase_by_one_across_timed_steps(parts, timed):
    positions = parts.policy.position_ids(timed)
    token = parts.policy.model.config.video_token_id
    for row in range(4):
        real = timed.attention_mask[row].bool()
        time, height, width = positions[:, row, real]
        assert torch.equal(time, torch.arange(len(time)))  # no gaps: each step has one video token
        assert torch.equal(time, height)
        assert torch.equal(time, width)
        assert (timed.input_ids[row, real] == token).sum() == timed.video_grid_thw[row, 0]


def test_shared_prefix_and_repeated_scores_agree(parts, timed):
    answers = completions(LENGTHS, seed=1)
    ways = [
        learn(parts.policy, timed.rows(0, 3), answers, forward_by=way)
        for way in ("shared_prefix", "repeated")
    ]
    errors = worst_errors(*ways)
    assert errors["logprobs"] <= 1e-12, errors
    assert errors["gradient"] <= 1e-7, errors


@pytest.mark.parametrize("engine", [SharedPrefixEngine, HFEngine])
def test_sampler_and_trainer_agree(parts, timed, engine):
    rollout = make_rollout(engine)
    preflight = Preflight(num_prompts=4, num_completions=2, max_abs_diff=1e-5, half_mean_diff=0.0)
    rollout.setup(policy=parts.policy, tokenizer=parts.tokenizer)
    difference = preflight.run(policy=parts.policy, rollout=rollout, prompts=timed, seed=0)
    assert difference <= 1e-5
