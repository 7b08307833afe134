"""Tests of `compat=time_r1` against naive copies of the release: parsing, queries, settings."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_policy import make_task

from tvg.config import build, compose
from tvg.data.annotation_writer import time_r1_row
from tvg.data.readers import read_charades, read_time_r1, read_tvgbench
from tvg.types import GroundingExample, Segment

NUM_TEXTS = 5000
PIECES = [
    *("<answer>", "</answer>", "<think>", "</think>", "<timestep>", "</timestep>", "\n", " ", "  "),
    *(" to ", " and ", " TO ", " And ", " tO ", "to", " - ", "s", " seconds", ":", ".", "..", ","),
    *("1", "12", "3.5", "0", "007.", ".25", "9" * 30, "5 to 6", "6 AND 5", "1:05", "2e3", "-4"),
    *("\u0663", "\uff15", "\u00bd", "\u00a0to ", "\ud800", "\0", "\u202e", "she sits", "½ to 2"),
]  # fmt: skip


def released_block(text: str) -> str | None:
    blocks = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return blocks[-1] if blocks else None


def released_range(text: str | None, flags: int) -> tuple[float, float] | None:
    found = re.findall(r"(\d+\.?\d*) (to|and) (\d+\.?\d*)", text or "", flags)
    return (float(found[-1][0]), float(found[-1][2])) if found else None


def released_reward_reading(text: str) -> tuple[float, float] | None:
    return released_range(released_block(text), re.IGNORECASE)


def released_evaluation_reading(text: str) -> tuple[float, float] | None:
    return released_range(text, 0)


def released_rating(text: str) -> tuple[float, float] | None:
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)[:2]]
    found = released_evaluation_reading(text)
    return found or ((numbers[0], numbers[1]) if len(numbers) == 2 else None)


def random_texts() -> list[str]:
    rng = random.Random(20261128)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 20))) for _ in range(NUM_TEXTS)]
    return [f"<think></think><answer>{t}</answer>" if rng.random() < 0.4 else t for t in texts]


@pytest.fixture(scope="module")
def task() -> Any:
    words = ["prompt=think", "compat=time_r1", "model.path=x"]
    return build(compose("evaluate", words).cfg.prompt)


READINGS = {
    "reward": (released_reward_reading, lambda task, text: task.parse(text).segment),
    "evaluation": (
        released_evaluation_reading,
        lambda task, text: task.parse(text, anywhere=True).segment,
    ),
    "rating": (released_rating, lambda task, text: task.rated_segment(text)),
}


@pytest.mark.parametrize("reading", READINGS)
def test_random_texts_are_parsed_as_released(task: Any, reading: str) -> None:
    theirs, ours = READINGS[reading]
    texts = random_texts()
    expected = [theirs(text) for text in texts]
    assert [ours(task, text) for text in texts] == expected
    assert 500 < sum(e is not None for e in expected) < NUM_TEXTS - 500


def test_evaluation_does_not_parse_upper_case_separators(task: Any) -> None:
    text = "<answer>1 to 2 or 3 TO 4</answer>"
    assert task.parse(text).segment == Segment(3, 4)
    assert task.parse(text, anywhere=True).segment == Segment(1, 2)


def test_rating_falls_back_to_the_first_two_numbers(task: Any) -> None:
    assert task.rated_segment("from 3.5s until 9s, not 12") == Segment(3.5, 9)
    assert task.rated_segment("9 to 5, or 1 and 2") == Segment(1, 2)
    assert task.rated_segment("only 3") is None
    assert task.rated_segment("9" * 400 + " 5") is None
    assert make_task().rated_segment("from 3.5 with 9") is None  # by default, no fallback


# -- queries --------------------------------------------------------------------------------------


def released_training_query(sentence: str) -> str:
    sentence = sentence.strip().lower()
    return sentence[:-1] if sentence.endswith(".") else sentence


def asked(task: Any, example: GroundingExample) -> str:
    (user,) = [m for m in task.messages(example) if m["role"] == "user"]
    (text,) = [part["text"] for part in user["content"] if part["type"] == "text"]
    return str(text)


def query_task(command: str, tmp_path: Path) -> Any:
    path = tmp_path / "released.txt"
    path.write_text("{}")
    words = ["prompt=think", "prompt.template=null", f"prompt.template_file={path}"]
    more = ["model.path=x"] if command == "evaluate" else []
    return build(compose(command, [*words, *more, "compat=time_r1"]).cfg.prompt)


def example_of(query: str, raw_query: str | None = None) -> GroundingExample:
    return GroundingExample(
        qid="v:0",
        video="v",
        video_path=None,
        query=query,
        raw_query=raw_query,
        segment=Segment(0.0, 1.0),
        duration_s=2.0,
    )


def test_training_keeps_a_blank_before_the_full_stop(tmp_path: Path) -> None:
    task = query_task("train", tmp_path)
    for query, text in [("They sit .", "they sit "), ("A b..", "a b."), (" A . ", "a "), (".", "")]:
        assert asked(task, example_of(query)) == released_training_query(query) == text
    assert make_task(lowercase=True, strip_period=True).query_text("They sit .") == "they sit"


def test_evaluation_keeps_blanks_that_the_reader_kept(tmp_path: Path) -> None:
    task = query_task("evaluate", tmp_path)
    assert asked(task, example_of("Who sits?", "Who sits? ")) == "Who sits? "
    assert asked(task, example_of("Who sits.")) == "Who sits."
    assert asked(make_task(template="{query}"), example_of("who", "who ")) == "who"


def test_unknown_query_blanks_setting_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^prompt.query_blanks: expected one of strip, before_per"
    ):
        make_task(query_blanks="all")


def test_rated_list_keeps_the_blanks_of_a_query() -> None:
    assert time_r1_row(example_of("who", " who "))["sentence"] == " who "
    assert time_r1_row(example_of("who"))["sentence"] == "who"


TRAIN = ("charades_sta/train.json", "activitynet/train.json", "timer1/train_2k5.json")
TEST = ("charades_sta/val.json", "activitynet/val_2.json", "timer1/tvgbench.json")
READERS = {"tvgbench.json": read_tvgbench, "train_2k5.json": read_time_r1}


def sentences(path: Path) -> list[str]:
    """Returns the sentences as the release's loaders read them, before its training edits them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, list):
        return [entry.get("question", entry.get("sentence")) for entry in content]
    return [text.strip() for video in content.values() for text in video["sentences"]]


def examples(path: Path) -> list[GroundingExample]:
    reader = READERS.get(path.name, read_charades)
    return reader(path, None, clamp_ends=False, drop_invalid=False).examples


def test_real_training_queries_equal_the_release(shared_dir: Path, tmp_path: Path) -> None:
    task = query_task("train", tmp_path)
    texts, num = [], 0
    for name in TRAIN:
        path = shared_dir / "data" / name
        expected = [released_training_query(sentence) for sentence in sentences(path)]
        texts = [asked(task, example) for example in examples(path)]
        assert texts == expected
        num += sum(text != text.rstrip() for text in texts)
    assert num == 37


def test_real_test_queries_equal_the_release(shared_dir: Path, tmp_path: Path) -> None:
    task = query_task("evaluate", tmp_path)
    for name in TEST:
        path = shared_dir / "data" / name
        texts = [asked(task, example) for example in examples(path)]
        assert texts == sentences(path)
        assert sum(text != text.strip() for text in texts) == (135 if "tvg" in name else 0)


# -- settings -------------------------------------------------------------------------------------


def test_sample_filtering_trains_on_20_tokens_and_rates_with_1024() -> None:
    for compat, trained, rated in (("none", 200, None), ("time_r1", 20, 1024)):
        words = ["experiment=timer1_rl_filtering", f"compat={compat}"]
        cfg = compose("train", words).cfg
        assert cfg.rollout.max_new_tokens == trained
        assert cfg.callbacks.sample_filtering.max_new_tokens == rated
    other = compose("train", ["experiment=timer1_rl", "compat=time_r1"]).cfg
    assert other.rollout.max_new_tokens == 200


@pytest.mark.parametrize("name", ["no_think", "choice_no_think"])
def test_prefill_of_an_empty_thought_equals_the_release(name: str) -> None:
    assert compose("train", [f"prompt={name}"]).cfg.prompt.prefill == "<think>\n</think>\n"


def test_keywords_equal_the_release() -> None:
    cfg = compose("train", ["reward=[iou,keywords]"]).cfg
    assert cfg.reward.keywords.reward.keywords == [
        *("analyze", "compare", "deduce", "however", "therefore", "because"),
        *("step", "observe", "notice", "identify", "wait"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Find "{}" now.', 'Find "a cat" now.'),
        ("{} in {x}", "a cat in {x}"),
        ("[EVENT] and {}", "a cat and {}"),
    ],
)
def test_empty_braces_mark_the_query_in_a_template_file(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text(text)
    task = make_task(template=None, template_file=str(path))
    assert asked(task, example_of("a cat")) == expected


def test_several_empty_braces_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("{} or {}")
    with pytest.raises(ValueError, match=r"contains \{\} 2 times: expected it once"):
        make_task(template=None, template_file=str(path))
