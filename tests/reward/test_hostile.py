"""Tests that every shipped reward is finite for any completion, with bounded work."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from helpers.reward_inputs import make_completions
from hypothesis import given, settings
from hypothesis import strategies as st

from tvg.config import CONF_DIR, build, compose
from tvg.core import text as text_module
from tvg.core.parsing import parse_answer
from tvg.core.parsing_time_r1 import parse_answer as parse_answer_of_release
from tvg.reward import diversity
from tvg.reward.weighted import WeightedReward
from tvg.types import Segment

NAMES = sorted(path.stem for path in (CONF_DIR / "reward").glob("*.yaml"))
PARSERS = (parse_answer, parse_answer_of_release)


@functools.cache
def all_rewards() -> WeightedReward:
    cfg = compose("train", [f"reward=[{','.join(NAMES)}]"]).cfg
    return WeightedReward(
        rewards={name: build(node.reward) for name, node in cfg.reward.items()},
        weights=dict.fromkeys(NAMES, 1.0),
    )


def check(texts: list[str], parser: Any = parse_answer, **changes: Any) -> None:
    """Scores one group and checks the ranges; `WeightedReward` raises on non-finite rewards."""
    completions = make_completions(
        texts, answers=[parser(text) for text in texts], extra={"answer": "B"}, **changes
    )
    output = all_rewards()(completions)
    assert list(output.components) == NAMES
    for name, (low, high) in RANGES.items():
        values = output.components[name].tolist()
        assert all(low <= value <= high for value in values), (name, values)


RANGES = {
    "boundary": (0, 1),
    "choice": (0, 1),
    "diversity": (0, 1),
    "format": (0, 1),
    "format_exact": (0, 1),
    "giou": (-1, 1),
    "iou": (0, 1),
    "keywords": (0, 0.2 + 1e-6),
    "overlong": (-1, 0),
    "paragraphs": (0, 0.1 + 1e-6),
    "think_length": (0, 0.5),
    "timesteps": (0, 0.2 + 1e-6),
}


def test_every_shipped_reward_is_listed() -> None:
    assert {*RANGES, "iou_v2"} == set(NAMES)  # iou_v2 is unbounded below, as published
    for name in NAMES:
        node = yaml.safe_load((CONF_DIR / "reward" / f"{name}.yaml").read_text())
        assert list(node) == [name]
        assert set(node[name]) == {"weight", "reward"}


HOSTILE = [
    "",
    "9" * 10_000,
    "9." * 5_000,
    "1 to " * 2_000,
    "1:11:" * 2_000,
    "\x00\xff\x7f\u202e" * 2_500,
    "\ud800\udfff" * 5_000,  # lone surrogates
    "\u0663 to \u0669" * 1_600,  # Arabic-Indic digits
    "\uff15\u0967\u09e7" * 3_300,
    "<answer>5 to 6</answer>" * 500,
    "<answer>" * 1_250,
    "</answer>" * 1_100,
    "<think>" * 700 + "</think> " * 500,
    "<think>" + "<timestep>" * 1_000,
    "<think>" + "<timestep>" + " " * 9_900 + "</think>",
    "<think>" + "<timestep>1 to " * 660 + "</think><answer>0 to 1</answer>",
    "<think>" + "\n" * 10_000 + "</think>",
    "a " * 5_000,
    "a" * 10_000,
    "(" * 10_000,
    "<answer>" + "(A)" * 3_300 + "</answer>",
    "<answer>" + "the best " * 1_100 + "</answer>",
    "<answer>0 to " + "1" * 308 + "</answer>",
    "<answer>" + "1" * 308 + " to " + "9" * 308 + "</answer>",
    "<answer>0 to 1" + "0" * 400 + "</answer>",
    "<answer>\u0663 to \u0669</answer>",
]


@pytest.mark.parametrize("parser", PARSERS, ids=["default", "time_r1"])
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:16]))
def test_long_junk_has_a_finite_reward(text: str, parser: Any) -> None:
    check([text, text, "<think>a</think><answer>1 to 2</answer>", ""], parser)


def test_huge_times_in_a_short_clip_have_finite_rewards() -> None:
    texts = ["<answer>" + "0" * n + f" to 1{'0' * n}</answer>" for n in (1, 50, 300, 307, 308, 309)]
    check(texts, truth=Segment(0.0, 0.25), duration_s=0.25)


tags = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "<timestep>", "</timestep>", " to ", "5", "."]
)
pieces = st.lists(tags | st.text(max_size=6), max_size=40).map("".join)
junk = st.binary(max_size=200).map(lambda b: b.decode("utf-8", errors="surrogateescape"))
surrogates = st.text(st.characters(categories=["Cs", "Nd", "Zs", "Lo"]), max_size=100)


@settings(deadline=None)  # a busy machine must not fail the test
@given(st.lists(pieces | junk | surrogates, min_size=1, max_size=4), st.sampled_from(PARSERS))
def test_any_text_has_a_finite_reward(texts: list[str], parser: Any) -> None:
    check(texts, parser)


times_s = st.floats(allow_nan=False, allow_infinity=False)
true_times_s = st.floats(min_value=0, max_value=1e5)


@settings(deadline=None)  # a busy machine must not fail the test
@given(times_s, times_s, true_times_s, true_times_s, st.floats(min_value=1e-3, max_value=1e5))
def test_any_times_have_a_finite_reward(
    start_s: float, end_s: float, truth_start_s: float, truth_end_s: float, duration_s: float
) -> None:
    text = f"<answer>{start_s:f} to {end_s:f}</answer>"
    check([text], truth=Segment(truth_start_s, truth_end_s), duration_s=duration_s)


# -- bounded work: only the first words of long texts are compared -------------------------------


def test_only_the_first_max_words_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    cells = text_module.lcs_length

    def counted(a: list[str], b: list[str]) -> int:
        steps.append((len(a), len(b)))
        return cells(a, b)

    monkeypatch.setattr(text_module, "lcs_length", counted)
    reward = diversity.DiversityReward(max_words=64)
    group = ["a b " * 5_000, "b a " * 50_000, "a", ""]
    reward(texts=group * 2, group_size=4)
    assert len(steps) == 2 * 6  # each pair of a group once
    assert max(steps) == (64, 64)


def test_words_after_max_words_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Pattern:
        def finditer(self, text: str) -> Iterator[list[str]]:
            for word in text.split():
                seen.append(word)
                yield [word]

    monkeypatch.setattr(text_module, "_WORD", Pattern())
    assert len(text_module.words("a " * 100_000, max_words=10)) == 10
    assert len(seen) <= 11
