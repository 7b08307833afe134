"""Tests of the metrics and table rows of a step's rollouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.tiny_policy import make_task

from tvg.report.reward_causes import tally
from tvg.training.rollout_log import (
    parse_completions,
    reward_metrics,
    rollout_metrics,
    rollout_rows,
    update_metrics,
)
from tvg.types import GroundingExample, PromptBatch, RewardOutput, RolloutBatch, Segment


def make_rollout(texts: list[str], *, group_size: int) -> RolloutBatch:
    num = len(texts) // group_size
    examples = [
        GroundingExample(
            qid="v:0",  # a batch may contain the same query twice
            video="v",
            video_path=None,
            query="q",
            segment=Segment(0, 1),
            duration_s=9.0,
        )
        for _ in range(num)
    ]
    prompts = PromptBatch(
        input_ids=torch.zeros(num, 1, dtype=torch.long),
        attention_mask=torch.ones(num, 1, dtype=torch.long),
        pixel_values_videos=None,
        video_grid_thw=torch.ones(num, 3, dtype=torch.long),
        sampled_fps=torch.ones(num),
        examples=examples,
        duration_s=torch.full((num,), 9.0),
    )
    mask = torch.ones(len(texts), 3, dtype=torch.long)
    mask[0, 1:] = 0
    return RolloutBatch(
        prompts=prompts,
        group_size=group_size,
        completion_ids=torch.zeros_like(mask),
        completion_mask=mask,
        sampler_logprobs=torch.zeros(len(texts), 3),
        texts=texts,
        is_finished=torch.tensor([True] * (len(texts) - 1) + [False]),
    )


def test_reward_metrics_equal_hand_computed_numbers():
    total = torch.tensor([1.0, 3.0, 2.0, 2.0])
    metrics = reward_metrics(RewardOutput(total=total, components={"iou": total / 2}), group_size=2)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "reward/total": 2.0,
            "reward/total_std": 2**0.5 / 2,  # mean over groups of the unbiased std
            "reward/total_flat_groups": 0.5,
            "reward/iou": 1.0,
            "reward/iou_std": 2**0.5 / 4,
            "reward/iou_flat_groups": 0.5,
        }
    )


@pytest.mark.parametrize("num_groups", [1, 3])
def test_equal_rewards_are_flat_despite_rounding(num_groups):
    total = torch.tensor([0.1, 0.7, 1 / 3])[:num_groups].repeat_interleave(7)
    assert float(total[:7].std()) > 0  # due to rounding
    metrics = reward_metrics(RewardOutput(total=total, components={}), group_size=7)
    assert float(metrics["reward/total_flat_groups"]) == 1.0


def test_table_rows_and_their_counts_equal_hand_computed_values():
    texts = ["<answer>1 to 2</answer>", "?", "<answer>3 to 4</answer>", "?"]
    total = torch.tensor([1.0, 0.5, 0.25, 0.25])
    rewards = RewardOutput(total=total, components={"iou": total / 2})
    rollout = make_rollout(texts, group_size=2)
    parsed = replace(parse_completions(make_task(), rollout), is_exact=[True, False, False, False])
    rows = rollout_rows(rollout, parsed, rewards)
    assert rows[0] == {
        "qid": "v:0",
        "query": "q",
        "truth": [0, 1],
        "segment": [1.0, 2.0],
        "reward": 1.0,
        "reward_iou": 0.5,
        "num_tokens": 1,
        "parsed": True,
        "exact": True,
        "finished": True,
        "group": 0,
        "text": texts[0],
    }
    assert [row["parsed"] for row in rows] == [True, False, True, False]
    assert [row["group"] for row in rows] == [0, 0, 1, 1]
    assert [row["finished"] for row in rows] == [True, True, True, False]
    counted = tally(rows)
    assert (counted.num, counted.num_parsed, counted.num_finished) == (4, 2, 3)
    assert counted.num_exact == 1
    metrics = rollout_metrics(rollout, parsed, rewards)
    assert metrics["completion/parse_rate"] == 0.5
    assert metrics["completion/exact_format_rate"] == 0.25
    assert (counted.num_groups, counted.num_flat_groups) == (2, 1)
    assert counted.ranges == {"": (0.25, 1.0), "iou": (0.125, 0.5)}


def test_a_prompt_without_segments_counts_any_answer_block_as_parsed():
    texts = ["<answer>(B)</answer>", "B", "", "<answer>1</answer>"]
    rollout = make_rollout(texts, group_size=2)
    choice = parse_completions(make_task(answer_format=None), rollout)
    assert choice.is_parsed == [True, False, False, True]
    assert parse_completions(make_task(), rollout).is_parsed == [False] * 4


def test_update_metrics_are_means_with_the_last_learning_rate():
    updates = [
        {"loss": torch.tensor(1.0), "kl": torch.tensor(0.5), "learning_rate": torch.tensor(0.4)},
        {"loss": torch.tensor(3.0), "kl": torch.tensor(1.5), "learning_rate": torch.tensor(0.2)},
    ]
    updates[0]["sampler_gap"] = torch.tensor(0.25)  # only in the first update
    found = {name: float(value) for name, value in update_metrics(updates).items()}
    assert found == pytest.approx(
        {"loss": 2.0, "policy/kl": 1.0, "learning_rate": 0.2, "policy/sampler_gap": 0.25}
    )
