"""Tests of checking annotations against video files: failures, durations and windows."""

from dataclasses import replace
from pathlib import Path

import pytest

from tvg.data.readers.record import ReadReport, ReadResult
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder, VideoInfo
from tvg.data.video.sampling import FrameSampling
from tvg.data.video.timeline import variable_rate
from tvg.preparation.frames import ClipRequest
from tvg.preparation.inspection import inspect, total_of, unusable_clips
from tvg.preparation.inspection_report import as_json, as_table
from tvg.types import GroundingExample, LeadIn, Segment


def example(qid, *, video="a", duration_s=10.0, segment=(1.0, 2.0), **more):
    return GroundingExample(
        qid=qid,
        video=video,
        video_path=Path(f"{video}.mp4"),
        query="x",
        segment=Segment(*segment),
        duration_s=duration_s,
        **more,
    )


def info(seconds: float) -> VideoInfo:
    return VideoInfo(num_frames=round(seconds * 10), fps=10.0, height=48, width=64)


def inspected(examples, infos, failed=None, splits=("train",), **counts):
    num = len({e.qid for e in examples})
    report = ReadReport(annotation_file="f", num_queries=num, num_examples=num, **counts)
    files = {Path(f"{name}.mp4"): found for name, found in infos.items()}
    return inspect(ReadResult(examples=examples, report=report), splits, failed or {}, files)


def test_queries_of_failed_clips_are_dropped_and_files_named():
    examples = [
        example("a:0"),
        example("b:0", video="b"),
        example("a:1"),
        example("b:0", video="b"),
    ]
    window = example("a:2", window=Segment(0.0, 5.0), duration_s=5.0)
    found = inspected(
        [*examples, window],
        {"a": info(10), "b": "is broken"},
        failed={ClipRequest(Path("b.mp4")): "is broken"},
    )
    assert [e.qid for e in found.examples] == ["a:0", "a:1", "a:2"]
    assert found.unreadable == {"b.mp4": "is broken"}
    assert found.report.dropped == {"video unreadable": 1}  # repeated in a mixture, counted once
    assert (found.report.num_queries, found.report.num_examples) == (4, 3)
    files = {Path("a.mp4"): info(10), Path("c.mp4"): "is empty"}
    only = ReadResult(
        examples=examples[:1], report=ReadReport(annotation_file="f", num_queries=3, num_examples=1)
    )
    empty = {ClipRequest(Path("c.mp4")): "is empty"}
    more = inspect(only, ("train",), empty, files, also=[example("c:0", video="c"), examples[0]])
    assert more.unreadable == {"c.mp4": "is empty"}
    assert (more.report.dropped, more.report.num_examples) == ({}, 1)
    part = inspected(
        [*examples[:1], window],
        {"a": info(10)},
        failed={ClipRequest(Path("a.mp4"), Segment(0.0, 5.0)): "no frame"},
    )
    assert [e.qid for e in part.examples] == ["a:0"]
    assert part.unreadable == {"a.mp4": "no frame"}


@pytest.mark.parametrize(
    ("stated_s", "found_s", "is_other"),
    [(10.0, 10.0, 0), (10.0, 11.0, 0), (10.0, 11.1, 1), (10.0, 8.9, 1), (100.0, 104.9, 0),
     (100.0, 105.2, 1), (100.0, 94.9, 1)],
)  # fmt: skip
def test_stated_durations_may_differ_by_1_s_or_5_percent(stated_s, found_s, is_other):
    queries = [example("a:0", duration_s=stated_s), example("a:1", duration_s=stated_s)]
    found = inspected(queries, {"a": info(found_s)})
    assert found.num_other_duration == is_other  # counted once per clip
    defects = found.report.defects
    assert [d.example_ids for d in defects.values()] == ([["a:0"]] if is_other else [])
    assert len(found.examples) == 2


def test_every_query_is_checked_for_a_wrong_duration():
    queries = [
        example("a:0"),
        example("a:1", duration_s=10.0),
        example("a:2", duration_s=99.0),
        example("a:3", duration_s=98.0),
    ]
    found = inspected(queries, {"a": info(10)})
    assert found.num_other_duration == 1  # counted once per clip
    assert [d.example_ids for d in found.report.defects.values()] == [["a:2"]]


def test_duration_of_a_window_is_compared_with_its_length():
    inside = example("a:0", window=Segment(20.0, 30.0))
    precut = example("b:0", video="b", window=Segment(20.0, 30.0))
    found = inspected([inside, precut], {"a": info(60), "b": info(10)})
    assert (found.num_other_duration, found.num_precut) == (0, 1)
    wrong = example("a:0", window=Segment(20.0, 30.0), duration_s=60.0)
    assert inspected([wrong], {"a": info(60)}).num_other_duration == 1


def test_lead_in_is_part_of_the_stated_duration():
    padded = example("a:0", duration_s=15.0, lead_in=LeadIn(5.0, "blank", 0))
    assert inspected([padded], {"a": info(10)}).num_other_duration == 0


def test_missing_duration_is_taken_from_the_file():
    queries = [
        example("a:0", duration_s=None, segment=(8.0, 10.9)),
        example("a:1", duration_s=None, segment=(8.0, 11.1)),
        example("b:0", video="b", segment=(8.0, 99.0)),
    ]
    found = inspected(queries, {"a": info(10), "b": info(10)}, splits=("test",))
    assert [e.duration_s for e in found.examples] == [10.0, 10.0, 10.0]
    (defect,) = found.report.defects.values()
    assert (defect.count, defect.action, defect.example_ids) == (1, "kept", ["a:1"])
    assert [e.segment for e in found.examples] == [e.segment for e in queries]


@pytest.mark.parametrize("stated_s", [None, 200.0])  # missing or wrong
@pytest.mark.parametrize("is_training", [True, False])
def test_segments_are_checked_against_the_file(stated_s, is_training):
    spans = {"in": (1.0, 4.0), "late": (1.0, 50.0), "after": (4.0, 110.0)}
    queries = [example(qid, duration_s=stated_s, segment=span) for qid, span in spans.items()]
    queries += queries[1:]  # repeated in a mixture, counted once
    lead_in = LeadIn(2.04, "blank", 0)
    queries.append(example("padded", segment=(3.0, 7.0), duration_s=6.0, lead_in=lead_in))
    splits = ("train",) if is_training else ("test",)
    found = inspected(queries, {"a": info(4)}, splits=splits)
    counted = {
        name: (d.count, d.action, d.example_ids)
        for name, d in found.report.defects.items()
        if name != "with a stated duration that is not the file's"
    }
    if is_training:
        assert [e.qid for e in found.examples] == ["in", "late", "late", "padded"]
        assert [e.segment for e in found.examples[:2]] == [(1.0, 4.0), (1.0, 4.0)]
        # At 10 fps: 20 frames of lead-in and 40 frames of the file.
        assert found.examples[3].segment == (3.0, 6.0)
        assert found.report.repaired == {"ending after the file's end": 2}
        assert found.report.dropped == {"starting after the file's end": 1}
        assert counted == {
            "ending after the file's end": (2, "clamped", ["late", "padded"]),
            "starting after the file's end": (1, "dropped", ["after"]),
        }
        assert (found.report.num_queries, found.report.num_examples) == (4, 3)
        return
    assert [e.segment for e in found.examples] == [e.segment for e in queries]
    late = {"ending after the file's end, no duration stated": (1, "kept", ["late"])}
    assert counted == {
        **({} if stated_s else late),
        "starting after the file's end": (1, "kept", ["after"]),
    }
    assert (found.report.repaired, found.report.dropped) == ({}, {})


def test_unusable_clips_are_found_without_decoding():
    loader = ClipLoader(sampling=FrameSampling(), decoder=VideoDecoder, timeout_s=None)
    good, bad, late = (
        ClipRequest(Path("a.mp4")),
        ClipRequest(Path("b.mp4")),
        ClipRequest(Path("a.mp4"), Segment(50.0, 90.0)),
    )
    problems = unusable_clips(
        [good, bad, late], {Path("a.mp4"): info(10), Path("b.mp4"): "is empty"}, loader
    )
    assert list(problems) == [bad, late]
    assert problems[bad] == "is empty"
    assert "the clip window 50 to 90 s does not fit this file of 10.00 s" in problems[late]


def test_files_of_a_variable_rate_are_counted_once():
    times = variable_rate([0.0, 0.1, 5.0, 9.9], last_frame_s=0.1, stated_fps=10.0)
    varying = replace(info(10), variable=times)
    queries = [example("a:0"), example("a:1", window=Segment(0.0, 5.0)), example("b:0", video="b")]
    infos = {"a": varying, "b": info(10)}
    train = inspected(queries, infos)
    test = inspected([*queries, example("c:0", video="c")], infos | {"c": varying})
    assert (as_json(train)["variable_rate"], as_json(test)["variable_rate"]) == (1, 2)
    assert as_json(total_of([train, test]))["variable_rate"] == 2
    table = as_table("as read", [train, test])
    assert list(table.columns[-1].cells) == ["1", "2"]
    assert table.columns[-1].header == "variable rate"


def test_total_names_the_actions_of_both_splits():
    train = inspected([example("a:0")], {"a": info(10)})
    test = inspected([example("a:0"), example("a:1")], {"a": info(10)}, splits=("val", "test"))
    train.report.add("with start >= end", "a:7", "dropped")
    test.report.add("with start >= end", "a:8", "kept")
    train.report.missing = test.report.missing = ["m"]
    total = total_of([train, test])
    assert total.splits == ("train", "val", "test")
    assert (total.report.num_queries, total.report.num_examples) == (3, 3)
    assert total.report.missing == ["m"]
    defect = total.report.defects["with start >= end"]
    assert (defect.count, defect.action) == (2, "dropped, kept")
    assert total_of([train]) is train


def test_dropped_queries_no_longer_count_as_repaired():
    report = ReadReport(annotation_file="f", num_queries=4, num_examples=4)
    report.repaired = {"ending after": 3, "starting before": 1}
    report.repaired_ids = {"ending after": {"a:0", "a:1", "b:0"}, "starting before": {"b:0"}}
    queries = [example("a:0"), example("a:1", segment=(10.0, 99.0)), example("a:2")]
    queries.append(example("b:0", video="b"))
    files = {Path("a.mp4"): info(10), Path("b.mp4"): "is broken"}
    failed = {ClipRequest(Path("b.mp4")): "is broken"}
    result = ReadResult(examples=queries, report=report)
    found = inspect(result, ("train",), failed, files).report
    assert found.repaired == {"ending after": 1}
    assert found.dropped == {"video unreadable": 1, "starting after the file's end": 1}
    assert found.num_examples == 2
    assert report.repaired == {"ending after": 3, "starting before": 1}  # the input is unchanged
