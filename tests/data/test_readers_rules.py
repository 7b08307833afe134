"""Tests that defective queries are counted, repaired or dropped in every format."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tvg.data.readers import Query, ReadError, ReadReport, ReadResult, read_queries
from tvg.data.readers.record import merge_reports
from tvg.types import Segment

LATE = "ending after the video's end"
EARLY = "starting before the video's start"


def query(qid: str, start_s: float, end_s: float, **changes: Any) -> Query:
    defaults = {"video": "v", "sentence": f"what {qid} shows", "duration_s": 10.0}
    return Query(qid=qid, segment=Segment(start_s, end_s), **{**defaults, **changes})


def read(queries: list[Query], *, training: bool, **changes: Any) -> ReadResult:
    settings: dict[str, Any] = {"video_dir": None, "extensions": ("mp4",), "on_missing": "error"}
    return read_queries(
        "file.json",
        queries,
        clamp_ends=training,
        drop_invalid=training,
        **{**settings, **changes},
    )


def counts(report: ReadReport) -> dict[str, tuple[int, str]]:
    return {name: (defect.count, defect.action) for name, defect in report.defects.items()}


DEFECTIVE = [
    query("good", 1, 3),
    query("empty", 5, 5),
    query("reversed and after", 12, 2),
    query("after", 10, 12),
    query("before", -3, 0),
    query("silent", 1, 2, sentence=""),
    query("late", 9, 10.5),
    query("later", 9, 11.5),
    query("early and late", -1, 10.0000001),
    query("several", 1, 2, num_spans=2),
    query("copy", 1, 3, sentence="what good shows"),
    query("endless", 9, 99, duration_s=None),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("segment", [(0.0, float("nan")), (float("inf"), 3.0)])
def test_segments_must_be_finite(training: bool, segment: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"^file\.json: odd: expected a segment in finite seconds"):
        read([query("good", 1, 3), query("odd", *segment)], training=training)


def test_training_repairs_or_drops() -> None:
    result = read(DEFECTIVE, training=True)
    report = result.report
    assert {example.qid: tuple(example.segment or ()) for example in result.examples} == {
        "good": (1, 3),
        "late": (9, 10),
        "later": (9, 10),
        "early and late": (0, 10),
        "endless": (9, 99),
    }
    assert counts(report) == {
        "with start >= end": (2, "dropped"),
        "starting after the video's end": (2, "dropped"),
        "ending before the video's start": (1, "dropped"),
        "without a sentence": (1, "dropped"),
        "with several spans": (1, "dropped"),
        "repeated word for word": (1, "dropped"),
        LATE: (4, "clamped"),  # includes one that was dropped
        EARLY: (2, "clamped"),
    }
    assert report.repaired == {LATE: 3, EARLY: 1}
    assert report.dropped == {  # each query counts under its first reason
        "with start >= end": 2,
        "starting after the video's end": 1,
        "ending before the video's start": 1,
        "without a sentence": 1,
        "with several spans": 1,
        "repeated word for word": 1,
    }
    assert (report.num_videos, report.num_queries, report.num_examples) == (1, 12, 5)


def test_benchmarks_keep_all_queries_and_count_the_same_defects() -> None:
    result = read(DEFECTIVE, training=False)
    assert [(e.qid, e.segment) for e in result.examples] == [(q.qid, q.segment) for q in DEFECTIVE]
    assert result.report.dropped == result.report.repaired == {}
    in_training = counts(read(DEFECTIVE, training=True).report)
    assert counts(result.report) == {name: (n, "kept") for name, (n, _) in in_training.items()}


@pytest.mark.parametrize("training", [True, False])
def test_late_ends_are_counted_by_excess(training: bool) -> None:
    # The ends exceed 10 s by 2, 0.5, 1.5 and 1e-7 s; exactly 0.5 is not more than 0.5.
    assert read(DEFECTIVE, training=training).report.late_ends == {
        "0": 4,
        "1e-06": 3,
        "0.5": 2,
        "1": 2,
    }


def test_the_same_query_on_other_clips_is_not_repeated() -> None:
    first = query("a", 1, 3, sentence="x")
    window = Segment(0, 10)
    others = [
        query("b", 1, 3, sentence="X"),
        query("c", 1, 4, sentence="x"),
        query("d", 1, 3, sentence="x", video="w"),
        query("e", 1, 3, sentence="x", window=window),
    ]
    result = read([first, *others, query("f", 1, 3, sentence="x", window=window)], training=True)
    assert [example.qid for example in result.examples] == ["a", "b", "c", "d", "e"]


def test_repeated_ids_are_renamed() -> None:
    ids = ["a", "a", "a#2", "b", "a"]
    queries = [query(qid, index, index + 1) for index, qid in enumerate(ids)]
    result = read(queries, training=False)
    assert [example.qid for example in result.examples] == ["a", "a#2", "a#2#2", "b", "a#3"]
    assert counts(result.report) == {"with a repeated id": (3, "renamed")}


def test_thousands_of_equal_ids_are_renamed_quickly() -> None:
    queries = [query("a", index, index + 1, duration_s=None) for index in range(20_000)]
    begin = time.process_time()
    result = read(queries, training=False)
    assert time.process_time() - begin < 5  # with quadratic time it took a minute
    assert [example.qid for example in result.examples[-2:]] == ["a#19999", "a#20000"]


@pytest.mark.parametrize("training", [True, False])
def test_a_file_duration_is_cut_to_the_window(training: bool) -> None:
    window = Segment(30, 60)
    queries = [
        query("late", 0, 50, window=window, duration_s=120.0),
        query("after", 35, 50, window=window, duration_s=120.0),
        query("rounded", 0, 30, window=window, duration_s=30.01),
        query("short", 0, 20, window=window, duration_s=25.0),  # the file ends within the window
        query("unstated", 0, 20, window=window, duration_s=None),
    ]
    result = read(queries, training=training)
    found = {e.qid: (tuple(e.segment or ()), e.duration_s) for e in result.examples}
    assert found == {
        "late": ((0, 30 if training else 50), 30),
        "rounded": ((0, 30), 30.01),
        "short": ((0, 20), 25),
        "unstated": ((0, 20), 30),
    } | ({} if training else {"after": ((35, 50), 30)})
    assert counts(result.report) == {
        "with a duration longer than the window": (2, "cut to the window's length"),
        "starting after the video's end": (1, "dropped" if training else "kept"),
        LATE: (2, "clamped" if training else "kept"),
    }
    assert result.report.late_ends["1"] == 2


def test_one_video_with_two_spellings_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "ABC.mp4").touch()
    queries = [
        query("a", 1, 3, video="ABC", sentence="x"),
        query("b", 1, 3, video="ABC.mp4", sentence="x"),
        query("c", 1, 3, video="far/ABC.mp4", sentence="x"),
        query("d", 1, 4, video="abc", sentence="x"),
    ]
    report = read(queries[:3], training=True, video_dir=tmp_path).report
    assert report.dropped == {"repeated word for word": 2}
    assert (report.num_videos, report.num_examples) == (1, 1)
    report = read(queries, training=True, video_dir=tmp_path, on_missing="skip").report
    assert (report.num_videos, report.missing) == (2, ["abc"])


def test_videos_that_differ_in_case_are_not_confused(tmp_path: Path) -> None:
    (tmp_path / "ABC.mp4").touch()
    queries = [query("a", 1, 3, video="abc"), query("b", 1, 3, video="ABC")]
    for order in (queries, queries[::-1]):
        result = read(order, training=True, video_dir=tmp_path, on_missing="skip")
        assert [example.qid for example in result.examples] == ["b"]
        assert result.report.missing == ["abc"]
        assert result.report.dropped == {"video missing": 1}
    (alone,) = read(queries[:1], training=True, video_dir=tmp_path).examples
    assert alone.video_path == tmp_path / "ABC.mp4"


def test_all_fields_of_a_query_reach_its_example() -> None:
    stated = query(
        "a",
        1,
        3,
        window=Segment(5, 15),
        difficulty=40.0,
        prediction=Segment(2, 30),
        hint=Segment(0, 12),
        extra={"source": "x"},
    )
    (example,) = read([stated], training=True).examples
    assert example.window == (5, 15)
    assert example.difficulty == 40.0
    assert example.prediction == (2, 30)  # a model's prediction is not repaired
    assert example.hint == (0, 10)
    assert example.extra == {"source": "x"}
    assert example.duration_s == 10.0


def test_missing_videos_are_skipped_or_refused(tmp_path: Path) -> None:
    (tmp_path / "there.mp4").touch()
    queries = [
        query("a", 1, 3, video="gone"),
        query("b", 5, 5, video="gone"),  # counted as a defect, dropped as missing
        query("c", 1, 3, video="there"),
        query("d", 5, 5, video="there"),
        query("e", 9, 12, video="far/lost.mp4"),
    ]
    for training in (True, False):
        result = read(queries, training=training, video_dir=tmp_path, on_missing="skip")
        kept = ["c"] if training else ["c", "d"]
        assert [example.qid for example in result.examples] == kept
        assert {example.video_path for example in result.examples} == {tmp_path / "there.mp4"}
        report = result.report
        assert report.missing == ["gone", "far/lost.mp4"]
        assert report.dropped == {"video missing": 3} | (
            {"with start >= end": 1} if training else {}
        )
        assert report.repaired == {}  # the query with the late end was dropped
        assert counts(report)["without a video file"] == (2, "skipped")
        assert counts(report)["with start >= end"][0] == 2
        assert report.late_ends["1"] == 1
        assert (report.num_videos, report.num_queries) == (3, 5)
    with pytest.raises(ReadError, match=r"2 of 3 ids have no video file.*'gone'") as caught:
        read(queries, training=True, video_dir=tmp_path)
    assert caught.value.report.missing == ["gone", "far/lost.mp4"]


def test_ids_do_not_depend_on_which_videos_exist(tmp_path: Path) -> None:
    queries = [query("a", 1, 3, video="gone"), query("a", 1, 3, video="there")]
    (tmp_path / "there.mp4").touch()
    result = read(queries, training=True, video_dir=tmp_path, on_missing="skip")
    assert [example.qid for example in result.examples] == ["a#2"]


def test_the_error_for_no_remaining_query_has_the_report() -> None:
    with pytest.raises(ReadError, match=r"file\.json: no example is left") as caught:
        read([query("a", 5, 5)], training=True)
    assert caught.value.report.dropped == {"with start >= end": 1}


def test_reports_of_several_sets_are_added() -> None:
    report = read(DEFECTIVE, training=True).report
    other = read([query("x", 5, 5), query("y", 9, 11), query("z", 1, 2)], training=True).report
    other.missing = ["u"]
    total = merge_reports({"one": report, "two": other})
    assert total.annotation_file == "file.json + file.json"
    assert (total.num_videos, total.num_queries, total.num_examples) == (2, 15, 7)
    assert total.repaired == {LATE: 4, EARLY: 1}
    assert total.dropped["with start >= end"] == 3
    assert total.late_ends == {"0": 5, "1e-06": 4, "0.5": 3, "1": 2}
    assert total.missing == ["two/u"]
    defect = total.defects["with start >= end"]
    assert (defect.count, defect.action) == (3, "dropped")
    assert defect.example_ids == ["one/empty", "one/reversed and after", "two/x"]
    assert total.num_queries == total.num_examples + sum(total.dropped.values())
    assert report.defects["with start >= end"].count == 2  # merging does not change the parts


def test_garbage_collection_is_enabled_again_after_reading() -> None:
    read([query("a", 1, 2)], training=True)
    assert gc.isenabled()

    def broken() -> Any:
        assert not gc.isenabled()
        yield query("a", 1, 2)
        raise ValueError("line 2")

    with pytest.raises(ValueError, match="line 2"):
        read(broken(), training=True)
    assert gc.isenabled()


@pytest.mark.slow
def test_100_000_annotations_take_under_5_s_and_500_mib() -> None:
    script = Path(__file__).parents[2] / "experiments" / "benchmarks" / "read_annotations.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("100,000 queries") == 3
