"""Tests of selections with hand-computed weights and orders."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvg.data.selection import (
    band,
    field_values,
    gaussian,
    gaussian_log_weights,
    keep_all,
    select_band,
    select_gaussian,
    select_random,
    select_top,
    top,
    uniform,
)
from tvg.types import GroundingExample, Segment


def example(difficulty: float | None = None, qid: str = "q", **extra: str | float):
    return GroundingExample(
        qid=qid,
        video="v",
        video_path=None,
        query="a person sits",
        segment=Segment(1.0, 4.5),
        duration_s=30.0,
        difficulty=difficulty,
        extra=extra,
    )


def test_gaussian_weights_by_hand():
    # mean 0.3, std 0.2: exp(0), exp(-1/2), exp(-2), exp(-1/8). Values of 0 or less have weight 0.
    weights = np.exp(gaussian_log_weights([0.3, 0.5, 0.7, 0.2, 0.0, -0.3], mean=0.3, std=0.2))
    assert weights.tolist() == pytest.approx([1, 0.606531, 0.135335, 0.882497, 0, 0], abs=1e-6)


def test_gaussian_draws_by_its_weights():
    # Weights 1, 0.606531 and 0.135335, with sum 1.741866. The value 0.0 has weight 0.
    values = [0.7, 0.0, 0.3, 0.5]
    num = 6000
    ones = Counter(gaussian(values, mean=0.3, std=0.2, k=1, seed=s)[0] for s in range(num))
    for position, share in ((0, 0.07770), (1, 0.0), (2, 0.57410), (3, 0.34821)):
        assert ones[position] / num == pytest.approx(share, abs=0.025)  # about 4 sigma
    # Without replacement: p2 * p3 / (1 - p2) + p3 * p2 / (1 - p3), and so on.
    pairs = Counter(tuple(gaussian(values, mean=0.3, std=0.2, k=2, seed=s)) for s in range(num))
    assert pairs[2, 3] / num == pytest.approx(0.77608, abs=0.025)
    assert pairs[0, 2] / num == pytest.approx(0.15316, abs=0.025)
    assert set(pairs) == {(2, 3), (0, 2), (0, 3)}


def test_gaussian_depends_on_the_seed_and_keeps_order():
    values = np.random.default_rng(0).random(500).tolist()
    drawn = gaussian(values, mean=0.3, std=0.2, k=60, seed=1)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 60
    assert drawn == gaussian(values, mean=0.3, std=0.2, k=60, seed=1)
    assert drawn != gaussian(values, mean=0.3, std=0.2, k=60, seed=2)
    assert np.mean([values[i] for i in drawn]) < 0.42  # the mean of all values is 0.5


@pytest.mark.parametrize("k", [None, 3, 4])
def test_gaussian_selects_all_if_k_is_large(k: int | None):
    values = [0.9, 0.0, 1e-9, -1.0, 0.3]
    assert gaussian(values, mean=0.3, std=0.2, k=k, seed=0) == [0, 2, 4]


def test_gaussian_handles_underflowing_weights():
    # exp(-(0.9 - 0.05)^2 / (2 * 0.01^2)) is 0 in float64; 0.8 is selected, as it is nearer.
    values = [0.9, 0.05, 0.8]
    assert gaussian(values, mean=0.05, std=0.01, k=2, seed=3) == [1, 2]


def test_band_by_hand():
    #          1    out  3    2    out   4    0    out
    values = [0.6, 0.71, 0.2, 0.5, 0.0, 0.1, 0.7, -0.2]
    assert band(values, low=0.0, high=0.7, k=None) == [6, 0, 3, 2, 5]
    assert band(values, low=0.0, high=0.7, k=5) == [6, 0, 3, 2, 5]
    # linspace(0, 4, 3) = 0, 2, 4; linspace(0, 4, 4) = 0, 1.33, 2.67, 4 -> 0, 1, 3, 4
    assert band(values, low=0.0, high=0.7, k=3) == [6, 3, 5]
    assert band(values, low=0.0, high=0.7, k=4) == [6, 0, 2, 5]
    assert band(values, low=0.0, high=0.7, k=1) == [6]
    assert band(values, low=0.9, high=1.0, k=1) == []


def test_band_keeps_the_order_of_equal_values():
    assert band([0.5, 0.6, 0.5, 0.6, 0.5], low=0, high=1, k=None) == [1, 3, 0, 2, 4]


@given(num=st.integers(1, 300), k=st.integers(1, 300))
def test_band_gives_k_different_positions(num: int, k: int):
    chosen = band(list(range(1, num + 1)), low=0, high=num, k=k)
    assert len(chosen) == len(set(chosen)) == min(num, k)
    assert chosen[0] == num - 1
    assert k == 1 or chosen[-1] == 0


def test_uniform_draws_each_equally_often():
    counts = Counter(i for s in range(3000) for i in uniform(5, k=2, seed=s))
    assert all(counts[i] / 3000 == pytest.approx(0.4, abs=0.04) for i in range(5))
    drawn = uniform(1000, k=50, seed=0)
    assert drawn == sorted(set(drawn))
    assert drawn != uniform(1000, k=50, seed=1)
    assert uniform(3, k=None, seed=5) == uniform(3, k=9, seed=5) == [0, 1, 2]


def test_top_by_hand():
    values = [0.2, 0.9, -1.0, 0.9, 0.0]
    assert top(values, k=3, largest=True) == [1, 3, 0]
    assert top(values, k=3, largest=False) == [2, 4, 0]
    assert top(values, k=None, largest=True) == [1, 3, 0, 4, 2]


@pytest.mark.parametrize(
    ("choose", "problem"),
    [
        (lambda: gaussian([1.0], mean=0, std=1, k=0, seed=0), r"data\.selection\.k must be 1"),
        (lambda: band([1.0], low=0, high=1, k=-1), r"data\.selection\.k must be 1 .* got -1"),
        (lambda: uniform(3, k=0, seed=0), r"data\.selection\.k must be 1"),
        (lambda: top([1.0], k=0, largest=True), r"data\.selection\.k must be 1"),
        (lambda: gaussian([1.0], mean=0, std=0, k=1, seed=0), r"selection\.std .* got 0"),
        (lambda: band([1.0], low=0.7, high=0.7, k=1), r"selection\.low must be below"),
        (lambda: field_values([], field="difficulty", unit=0), r"selection\.unit"),
    ],
)
def test_impossible_settings_are_refused(choose: Callable[[], object], problem: str):
    with pytest.raises(ValueError, match=problem):
        choose()


def test_any_numeric_field_can_be_used_for_selection():
    examples = [example(70.0, pass_rate=0.25)]
    expected = {"difficulty": 70.0, "duration_s": 30.0, "length_s": 3.5, "pass_rate": 0.25}
    for field, value in expected.items():
        assert field_values(examples, field=field, unit=1) == [value]
    assert field_values(examples, field="difficulty", unit=100) == [0.7]  # but 70 * 0.01 > 0.7


def test_an_example_without_the_field_is_named():
    good, bad = example(5.0), example(qid="q#7", source="cosmo", rate=math.nan)
    found = r"data\.selection\.field=difficulty: .* nothing in q#7 \(its numbers: .*length_s\)"
    with pytest.raises(ValueError, match=found):
        select_gaussian([good, bad], field="difficulty", unit=100, mean=0.3, std=0.2, k=1, seed=0)
    with pytest.raises(ValueError, match="got 'cosmo' in q#7"):
        select_top([bad], field="source", k=1, largest=True)
    with pytest.raises(ValueError, match="got nan in q#7"):
        select_top([bad], field="rate", k=1, largest=True)
    with pytest.raises(ValueError, match=r"field=length_s: .* nothing in q"):
        select_top([replace(good, segment=None)], field="length_s", k=1, largest=True)


def test_examples_are_selected():
    examples = [example(d, qid=str(d)) for d in (10.0, 70.0, 0.0, 71.0, 40.0)]

    def qids(chosen: list[GroundingExample]) -> list[float]:
        return [float(e.qid) for e in chosen]

    setting = {"field": "difficulty", "unit": 100}
    assert qids(select_band(examples, **setting, low=0, high=0.7, k=None)) == [70, 40, 10]
    assert qids(select_band(examples, **setting, low=0, high=0.7, k=2)) == [70, 10]
    all_above_0 = select_gaussian(examples, **setting, mean=0.3, std=0.2, k=9, seed=0)
    assert qids(all_above_0) == [10, 70, 71, 40]
    assert qids(select_top(examples, field="difficulty", k=2, largest=False)) == [0, 10]
    assert qids(select_random(examples, k=9, seed=0)) == [10, 70, 0, 71, 40]
    assert len(select_random(examples, k=2, seed=0)) == 2
    assert keep_all(examples) == examples
    with pytest.raises(ValueError, match="none of the 5 examples has a difficulty above 90 and"):
        select_band(examples, **setting, low=0.9, high=1, k=2)
    with pytest.raises(ValueError, match="none of the 1 examples has a difficulty above 0"):
        select_gaussian(examples[2:3], **setting, mean=0.3, std=0.2, k=2, seed=0)
    assert select_band([], **setting, low=0, high=0.7, k=2) == []


def test_time_r1_recipes_on_the_released_training_list(shared_dir: Path):
    rows = json.loads((shared_dir / "data" / "timer1" / "train_2k5.json").read_text())
    examples = [example(row["difficulty"], qid=str(n)) for n, row in enumerate(rows)]
    setting = {"field": "difficulty", "unit": 100}
    whole = select_band(examples, **setting, low=0, high=0.7, k=2500)
    assert len(whole) == 2428
    assert [e.difficulty for e in whole] == sorted((e.difficulty for e in whole), reverse=True)
    part = select_band(examples, **setting, low=0, high=0.7, k=1000)
    assert part == [whole[round(n * 2427 / 999)] for n in range(1000)]
    assert select_gaussian(examples, **setting, mean=0.3, std=0.2, k=2500, seed=0) == examples
    hard = select_gaussian(examples, **setting, mean=0.05, std=0.2, k=500, seed=0)
    assert np.mean([e.difficulty for e in hard]) < np.mean([e.difficulty for e in examples]) - 5
