"""Tests of the files and reading rules of each split, and of weighted mixtures of sets."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tvg.data.annotations import (
    SPLITS,
    AnnotationSet,
    MixedSets,
    Split,
    repeat_by_weight,
    share_limit,
)
from tvg.data.readers import ReadResult, read_charades
from tvg.data.readers.record import ReadReport


def make_set(**changes: Any) -> AnnotationSet:
    settings: dict[str, Any] = {
        "name": "small",
        "reader": read_charades,
        "world": None,
        "train_file": "a/train.json",
        "val_file": "a/val.json",
        "test_file": "a/test.json",
        "annotation_file": None,
        "annotation_split": None,
        "video_dir": None,
        "extensions": ("mp4",),
        "on_missing": "error",
    }
    return AnnotationSet(**{**settings, **changes})


def write_charades(path: Path, num: int, **changes: Any) -> str:
    entry = {"duration": 10, "timestamps": [[i, 10] for i in range(num)], "sentences": ["s"] * num}
    path.write_text(json.dumps({"v": {**entry, **changes}}))
    return str(path)


@pytest.mark.parametrize("split", SPLITS)
def test_the_reader_receives_files_and_rules_of_the_split(split: Split, tmp_path: Path) -> None:
    calls: list[Any] = []

    def reader(*args: Any, **options: Any) -> ReadResult:
        calls.append((args, options))
        return ReadResult(examples=[], report=ReadReport(annotation_file=args[0]))

    make_set(reader=reader, video_dir="b", extensions=["mkv"], on_missing="skip").read(split)
    is_training = split == "train"
    assert calls == [
        (
            (Path(f"a/{split}.json"), Path("b")),
            {
                "extensions": ("mkv",),
                "on_missing": "skip",
                "clamp_ends": is_training,
                "drop_invalid": is_training,
            },
        )
    ]
    make_set(reader=reader).read(split)
    assert calls[1][0][1] is None
    make_set(reader=reader).read(split, on_missing="skip")
    assert [options["on_missing"] for _, options in calls] == ["skip", "error", "skip"]


@pytest.mark.parametrize(
    ("changes", "split"),
    [
        ({"annotation_split": "train"}, "train"),
        ({"annotation_split": "test"}, "test"),
        ({"train_file": "a/f.json"}, "train"),
        ({"val_file": "a/f.json"}, "val"),
        ({"test_file": "f.json"}, "test"),
        ({"val_file": "a/f.json", "test_file": "a/f.json"}, "test"),
        ({"train_file": "a/f.json", "val_file": "a/f.json"}, "val"),
        ({"train_file": "a/f.json", "annotation_split": "val"}, "val"),
        ({}, "train"),  # the first split that the set has
        ({"train_file": None}, "val"),
        ({"train_file": None, "val_file": None}, "test"),
        ({"train_file": None, "val_file": None, "test_file": None}, "train"),
    ],
)
def test_annotation_file_replaces_the_file_of_a_split(
    changes: dict[str, Any], split: Split
) -> None:
    without = make_set(**changes).files
    annotations = make_set(annotation_file="elsewhere/f.json", **changes)
    assert annotations.annotation_split == split
    assert annotations.files == {**without, split: "elsewhere/f.json"}


def test_null_annotation_file_replaces_no_split() -> None:
    annotations = make_set(annotation_split="test")
    assert annotations.annotation_split is None
    assert annotations.files["test"] == "a/test.json"


def test_missing_splits_and_invalid_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.val_file: small has no val split"):
        make_set(val_file=None).read("val")
    with pytest.raises(ValueError, match=r"split: expected one of train, val, test, got 'dev'"):
        make_set().read("dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data\.annotation_split: expected one of train.*'dev'"):
        make_set(annotation_split="dev")
    with pytest.raises(ValueError, match=r"data\.on_missing: expected error or skip"):
        make_set(on_missing="drop")


def test_prepare_generates_synthetic_data() -> None:
    generated: list[str] = []
    make_set(world=lambda: generated.append("a")).prepare()
    make_set().prepare()
    sets = {"a": make_set(world=lambda: generated.append("b")), "b": make_set()}
    MixedSets(sets=sets, weights={"a": 1, "b": 1}, seed=0).prepare()
    assert generated == ["a", "b"]


def test_repeat_by_weight() -> None:
    assert repeat_by_weight(3, 1.0, 0) == [0, 1, 2]
    assert repeat_by_weight(3, 0.0, 0) == []
    assert repeat_by_weight(3, 2.0, 0) == [0, 1, 2, 0, 1, 2]
    assert repeat_by_weight(0, 2.5, 0) == []
    assert len(repeat_by_weight(5, 0.5, 0)) == 3  # 2.5 is rounded up
    assert len(repeat_by_weight(4, 0.1, 0)) == 0  # 0.4 is rounded down
    part = repeat_by_weight(100, 2.5, 7)
    assert part[:200] == [*range(100), *range(100)]
    half = part[200:]
    assert len(half) == len(set(half)) == 50
    assert half == sorted(half)
    assert half != list(range(50))
    assert half == repeat_by_weight(100, 0.5, 7)
    assert half != repeat_by_weight(100, 0.5, 8)
    # Over many seeds, each example occurs in proportion to its weight.
    taken = [index for seed in range(1000) for index in repeat_by_weight(4, 0.5, seed)]
    assert [abs(taken.count(index) - 500) < 80 for index in range(4)] == [True] * 4  # 5 sigma


def test_share_limit() -> None:
    names = ["a"] * 6 + ["b"] * 3 + ["c"]
    assert share_limit(names, None) == share_limit(names, 10) == list(range(10))
    assert share_limit(names, 5) == [0, 1, 2, 6, 7]  # shares 3, 1.5, 0.5: the first set wins ties
    assert share_limit(names, 7) == [0, 1, 2, 3, 6, 7, 9]  # 4.2, 2.1, 0.7
    assert share_limit(names, 1) == [0]
    assert share_limit(["b", "a", "b", "a"], 2) == [0, 1]
    for limit in range(1, 11):
        assert len(share_limit(names, limit)) == limit


def test_a_limit_is_divided_among_the_sets(sets: dict[str, AnnotationSet]) -> None:
    mixture = MixedSets(sets=sets, weights={"one": 1, "two": 1}, seed=0)
    tests = mixture.read("test").examples
    assert [e.qid for e in mixture.limited(tests, 2)] == ["one/v:0", "two/v:0"]
    assert mixture.limited(tests, None) == tests
    assert sets["one"].limited(tests, 2) == tests[:2]


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, AnnotationSet]:
    late = {"timestamps": [[1, 12], [3, 2]], "sentences": ["x", "y"]}
    return {
        "one": make_set(
            train_file=write_charades(tmp_path / "1.json", 4),
            val_file=None,
            test_file=write_charades(tmp_path / "1t.json", 2),
        ),
        "two": make_set(
            train_file=write_charades(tmp_path / "2.json", 2, **late),
            val_file=None,
            test_file=write_charades(tmp_path / "2t.json", 1),
        ),
    }


def test_a_training_mixture_repeats_examples_by_weight(
    sets: dict[str, AnnotationSet], caplog: pytest.LogCaptureFixture
) -> None:
    mixture = MixedSets(sets=sets, weights={"two": 3, "one": 0.5}, seed=0)
    with caplog.at_level(logging.INFO):
        result = mixture.read("train")
    half = repeat_by_weight(4, 0.5, 0)
    ids = [f"one/v:{index}" for index in half] + ["two/v:0"] * 3
    assert [example.qid for example in result.examples] == ids
    assert [example.extra["set"] for example in result.examples] == ["one"] * 2 + ["two"] * 3
    assert result.examples[2].segment == (1, 10)
    assert "one: 4 examples, weight 0.5: 2 in an epoch" in caplog.text
    report = result.report
    assert (report.num_videos, report.num_queries, report.num_examples) == (2, 6, 3)
    assert report.dropped == {"with start >= end": 1, "outside this epoch's share": 2}
    whole = mixture.read_whole("train")
    assert [e.qid for e in whole.examples] == [f"one/v:{i}" for i in range(4)] + ["two/v:0"]
    assert whole.report.num_examples == 5
    assert report.defects["with start >= end"].example_ids == ["two/v:1"]
    assert MixedSets(sets=sets, weights={"one": 0.5, "two": 3}, seed=0).read("train") == result


def test_an_evaluation_mixture_ignores_the_weights(
    sets: dict[str, AnnotationSet], tmp_path: Path
) -> None:
    mixture = MixedSets(sets=sets, weights={"one": 2.5, "two": 0}, seed=0)
    ids = [example.qid for example in mixture.read("test").examples]
    assert ids == ["one/v:0", "one/v:1", "two/v:0"]
    in_training = mixture.read("train")
    assert {example.extra["set"] for example in in_training.examples} == {"one"}
    assert in_training.report.num_queries == 4  # the set of weight 0 is not read
    assert mixture.name == "one + two"
    assert mixture.files["val"] is None
    assert mixture.files["test"] == f"{sets['one'].files['test']} + {sets['two'].files['test']}"
    for annotation_set in sets.values():
        annotation_set.video_dir = str(tmp_path)  # a folder without videos
    with pytest.raises(ValueError, match="no example is left"):
        mixture.read("test", on_missing="skip")
    with pytest.raises(ValueError, match="on_missing='skip' leaves these ids out"):
        mixture.read("test")
    with pytest.raises(ValueError, match=r"data\.sets: none of one, two has a val split"):
        mixture.read("val")


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (
            {"one": 1, "two": 1, "tow": 1},
            r"data\.weights\.tow: no such set; expected one of one, two",
        ),
        ({"one": 1}, r"data\.weights\.two: expected a weight for every set"),
        ({"one": 1, "two": -0.5}, r"data\.weights\.two: expected 0 or more, got -0\.5"),
        ({"one": 1, "two": float("nan")}, r"data\.weights\.two: expected 0 or more, got nan"),
        ({"one": 0, "two": 0}, r"data\.weights: expected at least one above 0"),
    ],
)
def test_invalid_weights_are_refused(
    sets: dict[str, AnnotationSet], weights: dict[str, float], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        MixedSets(sets=sets, weights=weights, seed=0)


def test_an_empty_mixture_is_refused(sets: dict[str, AnnotationSet]) -> None:
    with pytest.raises(ValueError, match=r"data\.sets: expected at least one set"):
        MixedSets(sets={}, weights={}, seed=0)
    with pytest.raises(ValueError, match=r"data\.weights: no example is left"):
        MixedSets(sets=sets, weights={"one": 0.1, "two": 0.1}, seed=0).read("train")
