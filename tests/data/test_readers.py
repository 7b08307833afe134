"""Tests of reading Charades-STA annotations: examples, defect counts and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvg.data.readers import ReadReport, read_charades
from tvg.types import Segment

TRAINING = {"clamp_ends": True, "drop_invalid": True}
BENCHMARK = {"clamp_ends": False, "drop_invalid": False}

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: Any) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "duration": 10.0,
        "timestamps": [[1.0, 2.5], [3, 9]],
        "sentences": ["  a person sits.\n", "Then stands."],
    } | changes


def counts(report: ReadReport) -> dict[str, tuple[int, str]]:
    return {name: (defect.count, defect.action) for name, defect in report.defects.items()}


def test_examples_of_a_charades_file(write: Write) -> None:
    result = read_charades(write({"AB": entry(), "CD": entry(duration=20)}), None, **TRAINING)
    assert [example.qid for example in result.examples] == ["AB:0", "AB:1", "CD:0", "CD:1"]
    first, second = result.examples[:2]
    assert (first.video, first.query, first.segment) == ("AB", "a person sits.", (1.0, 2.5))
    assert isinstance(second.segment, Segment)
    assert second.segment == (3.0, 9.0)
    assert second.query == "Then stands."
    assert first.duration_s == 10.0
    assert first.video_path is first.window is first.hint is None
    assert result.report.defects == {}
    assert (result.report.num_videos, result.report.num_queries) == (2, 4)
    assert result.report.num_examples == 4


def test_the_duration_key_may_differ_or_be_missing(write: Write) -> None:
    other = entry()
    other["video_duration"] = other.pop("duration")
    without = entry(timestamps=[[1, 2], [3, 900]])
    del without["duration"]
    result = read_charades(write({"A": other, "B": without}), None, **TRAINING)
    assert [example.duration_s for example in result.examples] == [10.0, 10.0, None, None]
    assert result.examples[3].segment == (3.0, 900.0)


def test_hints_are_read_and_clamped_in_training(write: Write) -> None:
    hinted = entry(hints=[[0, 4], None])
    examples = read_charades(write({"A": hinted, "B": entry()}), None, **TRAINING).examples
    assert [example.hint for example in examples] == [(0.0, 4.0), None, None, None]
    hinted = entry(hints=[[-1, 4], [8, 12]])
    examples = read_charades(write({"A": hinted}), None, **TRAINING).examples
    assert [example.hint for example in examples] == [(0.0, 4.0), (8.0, 10.0)]
    examples = read_charades(write({"A": hinted}), None, **BENCHMARK).examples
    assert [example.hint for example in examples] == [(-1.0, 4.0), (8.0, 12.0)]


DEFECTS = entry(
    timestamps=[[5, 5], [6, 2], [10, 12], [12, 14], [8, 12], [-1, 3], [-3, -1], [1, 2], [0, 10]],
    sentences=["a", "b", "c", "d", "e", "f", "g", "  ", "i"],
)


def test_training_drops_and_clamps(write: Write) -> None:
    result = read_charades(write({"A": DEFECTS}), None, **TRAINING)
    assert {example.qid: example.segment for example in result.examples} == {
        "A:4": (8.0, 10.0),
        "A:5": (0.0, 3.0),
        "A:8": (0.0, 10.0),
    }
    assert counts(result.report) == {
        "with start >= end": (2, "dropped"),
        "starting after the video's end": (2, "dropped"),
        "ending before the video's start": (1, "dropped"),
        "without a sentence": (1, "dropped"),
        "ending after the video's end": (3, "clamped"),
        "starting before the video's start": (2, "clamped"),
    }
    assert result.report.defects["with start >= end"].example_ids == ["A:0", "A:1"]
    assert (result.report.num_queries, result.report.num_examples) == (9, 3)


def test_benchmarks_keep_everything_and_count(write: Write) -> None:
    result = read_charades(write({"A": DEFECTS}), None, **BENCHMARK)
    assert [list(example.segment or ()) for example in result.examples] == DEFECTS["timestamps"]
    assert {action for _, action in counts(result.report).values()} == {"kept"}
    assert counts(result.report)["with start >= end"][0] == 2


def test_the_report_lists_five_ids_per_defect(write: Write) -> None:
    many = {f"v{i}": entry(timestamps=[[3, 1], [1, 2]]) for i in range(20)}
    report = read_charades(write(many), None, **TRAINING).report
    assert len(report.defects["with start >= end"].example_ids) == 5
    text = str(report)
    assert "annotations.json: 20 examples from 40 queries on 20 videos" in text
    assert "20 with start >= end, dropped: v0:0, v1:0, v2:0, v3:0, v4:0, ..." in text


def test_video_files_are_found_by_id(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for name in ("A.mp4", "A.avi", "b.WEBM", "c.d.mkv", "sub/E.mp4", "F.mp4", "other.txt"):
        (folder / name).touch()
    ids = ["A", "B", "c.d", "sub/E", "F.mp4"]
    path = write({video_id: entry() for video_id in ids})
    result = read_charades(path, folder, **TRAINING)
    found = [example.video_path for example in result.examples[::2]]
    names = ["A.mp4", "b.WEBM", "c.d.mkv", "sub/E.mp4", "F.mp4"]
    assert found == [folder / name for name in names]
    path = write({"A": entry()})
    result = read_charades(path, folder, extensions=(".AVI", "mp4"), **TRAINING)
    assert result.examples[0].video_path == folder / "A.avi"


def test_missing_videos_are_refused_or_skipped(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "B.mp4").touch()
    path = write({"A": entry(), "B": entry(), "C": entry()})
    with pytest.raises(ValueError, match="2 of 3 ids have no video file") as caught:
        read_charades(path, folder, **TRAINING)
    for part in (str(path), "'A'", str(folder / "A"), "mp4,mkv,webm,avi,mov,m4v", "on_missing"):
        assert part in str(caught.value)
    result = read_charades(path, folder, on_missing="skip", **TRAINING)
    assert [example.qid for example in result.examples] == ["B:0", "B:1"]
    assert counts(result.report) == {"without a video file": (2, "skipped")}
    assert result.report.defects["without a video file"].example_ids == ["A", "C"]
    with pytest.raises(ValueError, match="no example is left"):
        read_charades(write({"A": entry()}), folder, on_missing="skip", **TRAINING)
    with pytest.raises(ValueError, match=r"nowhere: cannot be listed"):
        read_charades(path, tmp_path / "nowhere", **TRAINING)
    with pytest.raises(ValueError, match="on_missing must be"):
        read_charades(path, folder, on_missing="ignore", **TRAINING)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("{}", "holds no video id"),
        ('{"A": ', "not JSON.*line 1"),
        ("A 1.0 2.0##a person sits.", "not JSON"),
        ([entry()], "expected a JSON object of video ids, got list"),
        ('{"A": {}, "A": {}}', "'A' occurs twice"),
        ({"A": [1, 2]}, "id 'A': expected an object"),
        ({"A": {}}, "id 'A': expected a list as timestamps, got NoneType"),
        ({"A": entry(sentences="a person sits.")}, "id 'A': expected a list as sentences, got str"),
        ({"A": entry(sentences=["one"])}, "id 'A': .*2 timestamps, 1 sentences"),
        ({"A": entry(hints=[[1, 2]])}, "id 'A': .*2 timestamps, 2 sentences, 1 hints"),
        ({"A": entry(duration="10 s")}, "id 'A': expected 0 or more seconds.*'10 s'"),
        ({"A": entry(duration=-2)}, "id 'A': expected 0 or more seconds.*int -2"),
        ({"A": entry(duration=True)}, "id 'A': expected 0 or more seconds.*bool True"),
        (
            {"A": entry(timestamps=[[1, 2], [3]])},
            r"id 'A': timestamps\[1\]: expected \[start, end\]",
        ),
        ({"A": entry(timestamps=[["1 s", 2], [3, 4]])}, r"id 'A': timestamps\[0\]: .*'1 s'"),
        ({"A": entry(timestamps=[[1, 2], [3, None]])}, r"id 'A': timestamps\[1\]"),
        ({"A": entry(timestamps=[[1, float("nan")], [3, 4]])}, r"id 'A': timestamps\[0\]: .*nan"),
        ({"A": entry(timestamps=[1, 2])}, r"id 'A': timestamps\[0\]"),
        ({"A": entry(sentences=["one", 2])}, r"id 'A': sentences\[1\]: expected a text, got int"),
        ({"A": entry(hints=[[3, 1], None])}, r"id 'A': hints\[0\]: expected start < end"),
        ({"A": entry(hints=[[10, 12], None])}, r"id 'A': hints\[0\]: expected start < end"),
        ({"A": entry(hints=[[], None])}, r"id 'A': hints\[0\]: expected \[start, end\]"),
        ({"A": entry(timestamps=[], sentences=[])}, "no example is left"),
    ],
)
def test_invalid_content_is_refused_with_its_file(write: Write, content: Any, problem: str) -> None:
    path = write(content)
    for mode in (TRAINING, BENCHMARK):
        with pytest.raises(ValueError, match=problem) as caught:
            read_charades(path, None, **mode)
        assert str(path) in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json: no such annotation file"):
        read_charades(tmp_path / "none.json", None, **TRAINING)
    with pytest.raises(ValueError, match="cannot be read"):
        read_charades(tmp_path, None, **TRAINING)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x81" * 10)
    with pytest.raises(ValueError, match=r"binary\.json: expected a JSON text"):
        read_charades(tmp_path / "binary.json", None, **TRAINING)


def test_a_public_query_is_read_with_its_video(shared_dir: Path) -> None:
    result = read_charades(
        shared_dir / "data" / "charades_sta" / "val.json",
        shared_dir / "data" / "videos",
        on_missing="skip",
        **BENCHMARK,
    )
    assert {example.video for example in result.examples} <= {"OHOFG"}
    assert counts(result.report)["without a video file"][0] >= 1333
