"""Tests of the counts of queries and defects in the public annotation files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tvg.data.readers import (
    ReadResult,
    read_charades,
    read_charades_txt,
    read_custom,
    read_time_r1,
    read_tvgbench,
)

LATE = "ending after the video's end"
EMPTY = "with start >= end"
AFTER = "starting after the video's end"

READERS = {
    "charades_sta/train.json": read_charades,
    "charades_sta/val.json": read_charades,
    "activitynet/train.json": read_charades,
    "activitynet/val_2.json": read_charades,
    "timer1/train_2k5.json": read_time_r1,
    "timer1/tvgbench.json": read_tvgbench,
}

# Numbers of videos and queries; ends late by more than 0, 1e-6, 0.5 and 1 s; empty or reversed
# segments; segments that start after the video's end. TimeRFT's 2,475 videos are published; the
# other numbers of videos were counted in the files.
TABLE = {
    "charades_sta/train.json": (5338, 12408, (1789, 1789, 1546, 671), 4, 3),
    "charades_sta/val.json": (1334, 3720, (562, 562, 514, 228), 0, 0),
    "activitynet/train.json": (10009, 37421, (261, 29, 0, 0), 4, 0),
    "activitynet/val_2.json": (4885, 17031, (111, 1, 0, 0), 0, 0),
    "timer1/train_2k5.json": (2475, 2500, (48, 34, 31, 29), 0, 0),
    "timer1/tvgbench.json": (462, 800, (27, 27, 21, 10), 11, 0),
}


def read(name: str, shared_dir: Path, *, training: bool) -> ReadResult:
    path = shared_dir / "data" / name
    return READERS[name](path, None, clamp_ends=training, drop_invalid=training)


@pytest.mark.parametrize("training", [True, False], ids=["training", "benchmark"])
@pytest.mark.parametrize("name", TABLE)
def test_query_and_defect_counts_of_public_files(
    name: str, training: bool, shared_dir: Path
) -> None:
    num_videos, num_queries, late, empty, after = TABLE[name]
    result = read(name, shared_dir, training=training)
    report = result.report
    assert (report.num_videos, report.num_queries) == (num_videos, num_queries)
    assert tuple(report.late_ends.items()) == tuple(
        zip(("0", "1e-06", "0.5", "1"), late, strict=True)
    )
    expected = {LATE: late[0], EMPTY: empty, AFTER: after}
    assert {what: defect.count for what, defect in report.defects.items()} == {
        what: count for what, count in expected.items() if count
    }
    assert len({example.qid for example in result.examples}) == len(result.examples)
    if training:
        assert report.dropped == ({EMPTY: empty} if empty else {})
        # Late ends are clamped unless the query was dropped. In these files, all segments that
        # start after the video's end are also reversed, so they were dropped.
        assert report.repaired == {LATE: late[0] - after}
        assert len(result.examples) == report.num_examples == num_queries - empty
        for example in result.examples:
            assert example.segment is not None
            assert example.duration_s is not None
            assert 0 <= example.segment.start_s < example.segment.end_s <= example.duration_s
    else:
        assert report.dropped == report.repaired == {}
        assert len(result.examples) == report.num_examples == num_queries


def test_complete_time_r1_training_list(shared_dir: Path) -> None:
    examples = read("timer1/train_2k5.json", shared_dir, training=True).examples
    windows = [example.window for example in examples if example.window is not None]
    assert len(windows) == 665
    assert sum(window.start_s > 0 for window in windows) == 479
    assert all(example.prediction is not None for example in examples)
    assert all(0 < (example.difficulty or 0) <= 100 for example in examples)
    for example in examples:
        if example.window is not None:
            assert example.duration_s == pytest.approx(example.window.length_s, abs=1e-9)
    assert examples[0].qid.startswith("my|cosmo|QtWT8rxUuNk|A purple hanger")
    assert examples[0].difficulty == 50.0
    assert examples[0].prediction == (0, 3)


def test_complete_tvgbench(shared_dir: Path) -> None:
    examples = read("timer1/tvgbench.json", shared_dir, training=False).examples
    assert sum(example.window is not None for example in examples) == 252
    assert len({example.extra["query_type"] for example in examples}) == 11
    assert Counter(example.extra["source"] for example in examples) == {
        "tacos_val": 168,
        "anet_test": 168,
        "nlq_r1_val": 168,
        "hirest_formated_moment_evaluation_gt": 158,
        "Charades_sta_test": 138,
    }
    assert {frozenset(example.extra) for example in examples} == {
        frozenset({"query_type", "source"})
    }
    assert (examples[0].qid, examples[0].segment) == ("KWZSA:0", (13.4, 28.1))


def test_equal_annotations_in_three_formats_give_equal_examples(
    shared_dir: Path, tmp_path: Path
) -> None:
    name = "charades_sta/train.json"
    data = json.loads((shared_dir / "data" / name).read_text())
    queries = [
        (video, entry["duration"], segment, sentence)
        for video, entry in data.items()
        for segment, sentence in zip(entry["timestamps"], entry["sentences"], strict=True)
    ]
    text = [f"{video} {s} {e}##{sentence}\n" for video, _, (s, e), sentence in queries]
    (tmp_path / "a.txt").write_text("".join(text))
    rows = [f"{video},{entry['duration']}\n" for video, entry in data.items()]
    (tmp_path / "a.csv").write_text("id,length\n" + "".join(rows))
    lines = [
        json.dumps({"video": video, "query": sentence, "segment": segment, "duration": duration_s})
        for video, duration_s, segment, sentence in queries
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rules = {"clamp_ends": True, "drop_invalid": True}
    expected = read(name, shared_dir, training=True)
    for result in (
        read_charades_txt(tmp_path / "a.txt", None, lengths_file=tmp_path / "a.csv", **rules),
        read_custom(tmp_path / "a.jsonl", None, **rules),
    ):
        assert result.examples == expected.examples
        assert result.report.defects == expected.report.defects
        assert result.report.late_ends == expected.report.late_ends
