"""Tests of `compat=time_r1` against the release's formulas, on 1,000 random completions.

Covers parsing, rewards, advantages and the loss, and checks where the default parser differs.
"""

from __future__ import annotations

import random
import re
import statistics
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.reward_inputs import make_completions
from torch import Tensor

from tvg.config import build, compose
from tvg.core.advantage import group_advantages
from tvg.core.parsing import parse_answer as parse_by_default
from tvg.core.parsing_time_r1 import parse_answer as parse_as_released
from tvg.core.reduction import mean_group_lengths
from tvg.reward.format import FormatReward
from tvg.reward.iou import IoUReward
from tvg.reward.iou_v2 import IoUV2Reward
from tvg.reward.weighted import WeightedReward
from tvg.types import Segment

GROUP_SIZE = 8
ADVANTAGE: dict[str, Any] = {"baseline": "group_mean", "scale": "group_std", "eps": 1e-4}
NUM = 1000
PLAIN = ("valid", "reversed", "empty", "late", "several", "words", "broken", "blocks")
UNDERSTOOD_BY_DEFAULT_ALONE = ("suffix", "clock", "dash")


@dataclass(frozen=True)
class Written:
    kind: str
    text: str
    truth: Segment
    duration_s: float


def number(rng: random.Random, low: float, high: float) -> str:
    return f"{rng.uniform(low, high):.{rng.choice([0, 1, 2])}f}"


def answer(rng: random.Random, kind: str, duration_s: float) -> str:
    a = number(rng, 0, duration_s * 0.6)
    b = number(rng, float(a), duration_s)
    word = rng.choice([" to ", " and ", " TO ", " And "])
    c, d = number(rng, 0, duration_s), number(rng, 0, duration_s)
    early = f"0{rng.randint(0, 1)}:{rng.randint(10, 29)}"
    later = f"0{rng.randint(2, 3)}:{rng.randint(10, 59)}"
    return {
        "valid": f"{a}{word}{b}",
        "reversed": f"{b}{word}{a}",
        "empty": f"{a}{word}{a}",
        "late": f"{a}{word}{number(rng, duration_s, 5 * duration_s)}",
        "several": f"{c}{word}{d}, no: {a}{word}{b}",
        "words": f"from {a}{word}{b} seconds",
        "broken": rng.choice(["", "nowhere", a, f"{a}{word}", f"{a} / {b}", f"{a}  or {b}"]),
        "blocks": f"{c}{word}{d}</answer> or <answer>{a}{word}{b}",
        "suffix": rng.choice(["{}s{}{}s", "{} seconds{}{} seconds"]).format(a, word, b),
        "clock": f"{early}{rng.choice([word, ' - '])}{later}",
        "dash": f"{a} - {b}",
    }[kind]


def completion(rng: random.Random, kind: str, duration_s: float) -> str:
    inside = answer(rng, kind, duration_s)
    think = rng.choice(["<think>a\nb</think>", "<think>1 to 2</think> ", "<think></think>\n"])
    whole = f"{think}<answer>{inside}</answer>"
    return rng.choice(
        [whole] * 4
        + [f"  {whole}\n", f"<answer>{inside}</answer>", whole + ".", whole[:-3], f"so {whole}"]
        + [think + inside]
    )


def written() -> list[Written]:
    """Generates groups of 8 completions; each group has a random clip and several answer kinds."""
    rng = random.Random(2503_13377)
    rows: list[Written] = []
    for _ in range(NUM // GROUP_SIZE):
        duration_s = rng.uniform(8, 150)
        start_s = rng.uniform(0, 0.8 * duration_s)
        truth = Segment(start_s, rng.uniform(start_s + 0.1, duration_s))
        for _ in range(GROUP_SIZE):
            kind = rng.choice(PLAIN * 2 + UNDERSTOOD_BY_DEFAULT_ALONE)
            rows.append(Written(kind, completion(rng, kind, duration_s), truth, duration_s))
    return rows


ROWS = written()


# -- the release's formulas, written naively -----------------------------------------------------


def naive_segment(text: str) -> tuple[float, float] | None:
    blocks = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    pairs = (
        re.findall(r"(\d+\.?\d*) (to|and) (\d+\.?\d*)", blocks[-1], re.IGNORECASE) if blocks else []
    )
    return (float(pairs[-1][0]), float(pairs[-1][2])) if pairs else None


def naive_rewards(row: Written) -> dict[str, float]:
    has_format = re.fullmatch(
        r"<think>.*?</think>\s*<answer>.*?</answer>", row.text.strip(), re.DOTALL
    )
    segment = naive_segment(row.text)
    s, e = row.truth
    iou = iou_v2 = 0.0
    if segment is not None:
        intersection = max(0.0, min(segment[1], e) - max(segment[0], s))
        hull = max(segment[1], e) - min(segment[0], s)  # instead of the union, as released
        iou = intersection / hull
        start_miss = abs(s / row.duration_s - segment[0] / row.duration_s)
        end_miss = abs(e / row.duration_s - segment[1] / row.duration_s)
        iou_v2 = iou * (1 - start_miss) * (1 - end_miss)
    return {"format": float(has_format is not None), "iou": iou, "iou_v2": iou_v2}


def naive_advantages(totals: list[float]) -> list[float]:
    out = []
    for first in range(0, len(totals), GROUP_SIZE):
        group = totals[first : first + GROUP_SIZE]
        mean, std = statistics.fmean(group), statistics.stdev(group)  # unbiased
        out += [(total - mean) / (std + 1e-4) for total in group]
    return out


def naive_loss(
    logprobs: Tensor, ref: Tensor, advantages: list[float], mask: Tensor, *, beta: float
) -> dict[str, float]:
    """Returns the loss of each reduction for one update per rollout: ratio 1, nothing clipped."""
    sums, means, num_tokens = 0.0, [], 0
    groups: dict[int, list[float]] = {}
    for n, advantage in enumerate(advantages):
        losses = []
        for t in range(int(mask[n].sum())):
            difference = ref[n, t] - logprobs[n, t]
            kl = torch.exp(difference) - difference - 1
            losses.append(float(-(1.0 * advantage - beta * kl)))
        sums += sum(losses)
        num_tokens += len(losses)
        means.append(sum(losses) / len(losses))
        groups.setdefault(n // GROUP_SIZE, []).extend(losses)
    of_groups = [sum(losses) / len(losses) for losses in groups.values()]
    return {
        "token_mean": sums / num_tokens,
        "group_token_mean": sum(of_groups) / len(of_groups),  # as released: one group per pass
        "sequence_mean": sum(means) / len(means),
    }


# -- comparison with our code --------------------------------------------------------------------


def our_rewards(names: list[str], parser) -> tuple[Tensor, dict[str, Tensor]]:
    rewards = {"format": FormatReward(think=True), "iou": IoUReward(), "iou_v2": IoUV2Reward()}
    weighted = WeightedReward(
        rewards=rewards, weights={name: float(name in names) for name in rewards}
    )
    output = weighted(
        make_completions(
            [row.text for row in ROWS],
            answers=[parser(row.text) for row in ROWS],
            truths=[row.truth for row in ROWS],
            durations_s=[row.duration_s for row in ROWS],
            group_size=GROUP_SIZE,
        )
    )
    return output.total, output.components


def test_random_completions_cover_every_kind() -> None:
    assert len(ROWS) == NUM
    kinds = {kind: sum(row.kind == kind for row in ROWS) for kind in {r.kind for r in ROWS}}
    assert set(kinds) == {*PLAIN, *UNDERSTOOD_BY_DEFAULT_ALONE}
    assert min(kinds.values()) > 30
    scores = [naive_rewards(row) for row in ROWS]
    assert 300 < sum(s["format"] for s in scores) < 900
    assert sum(s["iou"] > 0 for s in scores) > 300
    assert any(s["iou_v2"] < 0 for s in scores)  # not clamped, as published


def test_segments_equal_the_release() -> None:
    expected = [naive_segment(row.text) for row in ROWS]
    assert [parse_as_released(row.text).segment for row in ROWS] == expected


@pytest.mark.parametrize("names", [["iou", "format"], ["iou_v2", "format"]])
def test_rewards_and_advantages_equal_the_release(names: list[str]) -> None:
    total, parts = our_rewards(names, parse_as_released)
    expected = [naive_rewards(row) for row in ROWS]
    for name, values in parts.items():
        naive = torch.tensor([row[name] for row in expected])
        torch.testing.assert_close(values, naive, rtol=1e-6, atol=1e-7)  # float32
    totals = [sum(row[name] for name in names) for row in expected]
    torch.testing.assert_close(total, torch.tensor(totals), rtol=1e-6, atol=1e-7)
    # Both sides use the float32 rewards: division by 1e-4 amplifies rounding in flat groups.
    advantages = group_advantages(total.double(), group_size=GROUP_SIZE, **ADVANTAGE)
    naive = torch.tensor(naive_advantages(total.double().tolist()), dtype=torch.float64)
    torch.testing.assert_close(advantages, naive, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["token_mean", "group_token_mean", "sequence_mean"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_equals_the_release(reduction: str, beta: float) -> None:
    total, _ = our_rewards(["iou_v2", "format"], parse_as_released)
    advantages = group_advantages(total.double(), group_size=GROUP_SIZE, **ADVANTAGE)
    generator = torch.Generator().manual_seed(0)
    logprobs = -2 * torch.rand(NUM, 7, generator=generator, dtype=torch.float64)
    ref = logprobs + 0.3 * torch.randn(NUM, 7, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 8, (NUM, 1), generator=generator)
    mask = (torch.arange(7) < lengths).long()
    objective = build(
        compose(
            "train", [f"objective.loss.reduction={reduction}", f"objective.loss.kl_coef={beta}"]
        ).cfg.objective.loss
    )
    ours = objective(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        ref_logprobs=ref if beta else None,
        sampler_logprobs=None,
        policy_old_logprobs=None,
        entropy=torch.zeros_like(logprobs),
        advantages=advantages,
        loss_mask=mask,
        denominator=objective.denominator(mask),
        num_tokens=mask.sum(),
        group_lengths=mean_group_lengths(mask, group_size=GROUP_SIZE),
    ).loss
    expected = naive_loss(logprobs, ref, advantages.tolist(), mask, beta=beta)[reduction]
    assert float(ours) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# -- the default parser --------------------------------------------------------------------------


def test_default_parser_differs_only_for_suffix_clock_and_dash() -> None:
    differing = {}
    for row in ROWS:
        released, ours = parse_as_released(row.text).segment, parse_by_default(row.text).segment
        if released != ours:
            differing.setdefault(row.kind, []).append((released, ours))
    assert set(differing) == set(UNDERSTOOD_BY_DEFAULT_ALONE)
    for kind in ("suffix", "dash"):
        assert all(released is None and ours is not None for released, ours in differing[kind])
    for _, ours in differing["clock"]:  # the release reads "1:05 to 1:11" as 5 to 1
        assert ours is not None
        assert 10 <= ours.start_s < 90
        assert 120 <= ours.end_s < 240


def test_default_rewards_differ_only_for_suffix_clock_and_dash() -> None:
    _, released = our_rewards(["iou", "format"], parse_as_released)
    _, ours = our_rewards(["iou", "format"], parse_by_default)
    for name in released:
        differs = (released[name] != ours[name]).nonzero().flatten().tolist()
        kinds = {ROWS[row].kind for row in differs}
        assert kinds <= set(UNDERSTOOD_BY_DEFAULT_ALONE)
        assert bool(kinds) is (name != "format")
