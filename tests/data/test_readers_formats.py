"""Tests of the reader of each annotation format: values, and errors for invalid values."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tvg.config.entry import user_message
from tvg.data.readers import (
    ReadResult,
    annotation_reader,
    read_charades,
    read_charades_txt,
    read_custom,
    read_jsonl,
    read_time_r1,
    read_timelens_100k,
    read_tvgbench,
)

TRAINING = {"clamp_ends": True, "drop_invalid": True}
BENCHMARK = {"clamp_ends": False, "drop_invalid": False}

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: Any) -> Path:
        path = tmp_path / "annotations"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def fields_of(result: ReadResult) -> list[tuple[Any, ...]]:
    return [(e.qid, e.video, e.query, e.segment, e.duration_s) for e in result.examples]


def test_charades_reader_accepts_timelens_key_names(write: Write) -> None:
    entry = {
        "video_duration": 20,
        "spans": [[1, 2], [3, 4]],
        "queries": [" one ", "two\n"],
        "subset": "test",
        "fps": 30,
    }
    assert fields_of(read_charades(write({"A": entry}), None, **BENCHMARK)) == [
        ("A:0", "A", "one", (1, 2), 20),
        ("A:1", "A", "two", (3, 4), 20),
    ]
    bad = {**entry, "spans": [[1, 2], 3]}
    with pytest.raises(ValueError, match=r"id 'A': spans\[1\]: expected \[start, end\]"):
        read_charades(write({"A": bad}), None, **BENCHMARK)


CSV = "id,subject,length\nAB,x,30.5\nCD,y,12\n"
TEXT = "AB 1.5 20##a person sits.\r\n\nCD 0 12.5##open ## it.\nAB 3. 4.0## stands \n"


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    path = tmp_path / "lengths.csv"
    path.write_text(CSV)
    return path


def test_charades_text_is_read(write: Write, lengths: Path) -> None:
    result = read_charades_txt(write(TEXT), None, lengths_file=lengths, **TRAINING)
    assert fields_of(result) == [
        ("AB:0", "AB", "a person sits.", (1.5, 20), 30.5),
        ("CD:0", "CD", "open ## it.", (0, 12), 12),  # clamped to the csv's length
        ("AB:1", "AB", "stands", (3, 4), 30.5),
    ]


def test_charades_text_lengths_may_be_in_several_files(write: Write, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("id,length\nAB,30.5\n")
    (tmp_path / "2.csv").write_text("id,length\nCD,12\n")
    files = [str(tmp_path / "1.csv"), str(tmp_path / "2.csv")]
    result = read_charades_txt(write(TEXT), None, lengths_file=files, **TRAINING)
    assert [example.duration_s for example in result.examples] == [30.5, 12, 30.5]
    with pytest.raises(ValueError, match=r"line 3: no length of CD in .*1\.csv"):
        read_charades_txt(write(TEXT), None, lengths_file=files[:1], **TRAINING)


@pytest.mark.parametrize(
    ("text", "table", "problem"),
    [
        ("AB 1 2 a person sits.", CSV, "annotations: line 1: expected 'VIDEO start end##sentence'"),
        ("AB 1##a person sits.", CSV, "annotations: line 1: expected 'VIDEO"),
        ("AB 1 nan##a person sits.", CSV, "annotations: line 1: expected 'VIDEO"),
        (TEXT, "id;length\nAB;3\n", r"lengths\.csv: expected a csv with columns id and length"),
        (TEXT, "", r"lengths\.csv: expected a csv with columns id and length"),
        (TEXT, "id,length\nAB,3\nCD,\n", r"lengths\.csv: line 3: expected a positive number"),
        (TEXT, "id,length\nAB,0\n", r"lengths\.csv: line 2: expected a positive number.*'0'"),
        ("", CSV, "no example is left"),
    ],
)
def test_invalid_charades_text_is_refused(
    write: Write, lengths: Path, text: str, table: str, problem: str
) -> None:
    lengths.write_text(table)
    with pytest.raises(ValueError, match=problem):
        read_charades_txt(write(text), None, lengths_file=lengths, **TRAINING)


@pytest.mark.parametrize("end", ["1e1", "+10", "10.", "1.0E+1"])
def test_charades_text_accepts_other_number_forms(write: Write, lengths: Path, end: str) -> None:
    result = read_charades_txt(write(f"AB .5 {end}##s"), None, lengths_file=lengths, **TRAINING)
    assert [example.segment for example in result.examples] == [(0.5, 10)]


def test_a_missing_length_is_refused_only_if_used(write: Write, lengths: Path) -> None:
    lengths.write_text("length,id\n30.5,AB\n,EF\n0,GH\n12\n")
    result = read_charades_txt(write("AB 1 2##s"), None, lengths_file=lengths, **TRAINING)
    assert [example.duration_s for example in result.examples] == [30.5]
    with pytest.raises(ValueError, match=r"lengths\.csv: line 3: expected a positive number.*''"):
        read_charades_txt(write("EF 1 2##s"), None, lengths_file=lengths, **TRAINING)


TIME_R1 = {
    "video": "./data/videos/clip_00:10.mp4",
    "duration": 20.0,
    "timestamp": [1.0, 4],
    "sentence": " A hanger. ",
    "qid": "my|A hanger",
    "video_start": 10,
    "video_end": 30.0,
    "difficulty": 50.0,
    "pred": [0.0, 3.0],
}


def test_fields_of_time_r1_are_read(write: Write, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "clip_00:10.mp4").touch()
    entry = {**TIME_R1, "pass_rate": 0.25, "origin": "x", "seen": True, "more": [1], "none": None}
    (example,) = read_time_r1(write([entry]), videos, **TRAINING).examples
    assert fields_of(ReadResult(examples=[example], report=None)) == [  # type: ignore[arg-type]
        ("my|A hanger", TIME_R1["video"], "A hanger.", (1, 4), 20)
    ]
    assert example.video_path == videos / "clip_00:10.mp4"
    assert example.window == (10, 30)
    assert example.difficulty == 50
    assert example.prediction == (0, 3)
    assert example.extra == {"pass_rate": 0.25, "origin": "x"}


def test_optional_fields_of_time_r1_may_be_missing(write: Write) -> None:
    little = {"video": "a/b.mp4", "timestamp": [1, 9], "sentence": "s"}
    whole = {**little, "video_start": None, "video_end": None, "pred": None, "difficulty": None}
    cut = {**little, "video_start": 4, "video_end": 12, "qid": 7}
    result = read_time_r1(write([little, whole, cut]), None, **TRAINING)
    assert [(e.qid, e.duration_s, e.window, e.segment) for e in result.examples] == [
        ("b:0", None, None, (1, 9)),
        ("7", 8, (4, 12), (1, 8)),  # the duration is the window's length
    ]
    assert result.report.dropped == {"repeated word for word": 1}
    assert all(e.difficulty is e.prediction is None for e in result.examples)


TVGBENCH = {
    "path": "./data/bench/KWZSA.mp4",
    "question": " sits down ",
    "answer": "13.4-28.1",
    "start": None,
    "end": None,
    "duration": 30.12,
    "question_type": "video temporal grounding",
    "source": "./raw_data/Charades_sta_test.json",
    "dataset_name": "charades",
    "qsemtype": "Human Pose",
    "bins": {"videolen": 1},
}


def test_fields_of_tvgbench_are_read(write: Write) -> None:
    cut = {**TVGBENCH, "start": 2.5, "end": 12.0, "duration": 9.5, "answer": " 1e-05 - 3. "}
    result = read_tvgbench(write([TVGBENCH, cut]), None, **BENCHMARK)
    assert fields_of(result) == [
        ("KWZSA:0", TVGBENCH["path"], "sits down", (13.4, 28.1), 30.12),
        ("KWZSA:1", TVGBENCH["path"], "sits down", (1e-5, 3), 9.5),
    ]
    assert [example.window for example in result.examples] == [None, (2.5, 12)]
    extra = {"query_type": "Human Pose", "source": "Charades_sta_test"}
    assert [example.extra for example in result.examples] == [extra, extra]


TIMELENS = {
    "source": "cosmo_cap",
    "video_path": "cosmo_cap/ab.c.mp4",
    "duration": 40,
    "events": [
        {"query": " one", "span": [1, 2.5]},
        {"query": "two", "span": [[3, 4]], "iou": 0.3},
        {"query": "three", "span": [[5, 6], [7, 8]]},
    ],
}


def test_fields_of_timelens_100k_are_read(write: Write, tmp_path: Path) -> None:
    (tmp_path / "cosmo_cap").mkdir()
    (tmp_path / "cosmo_cap" / "ab.c.mp4").touch()
    again = {**TIMELENS, "events": [{"query": "four", "span": [0, 1]}]}
    path = write(lines(TIMELENS, again))
    result = read_timelens_100k(path, tmp_path, **TRAINING)
    video = TIMELENS["video_path"]
    assert fields_of(result) == [
        ("cosmo_cap/ab.c:0", video, "one", (1, 2.5), 40),
        ("cosmo_cap/ab.c:1", video, "two", (3, 4), 40),
        ("cosmo_cap/ab.c:3", video, "four", (0, 1), 40),
    ]
    assert result.examples[0].video_path == tmp_path / "cosmo_cap" / "ab.c.mp4"
    assert result.examples[0].extra == {"source": "cosmo_cap"}
    assert result.examples[1].extra == {"source": "cosmo_cap", "iou": 0.3}
    assert result.report.dropped == {"with several spans": 1}
    kept = read_timelens_100k(path, None, **BENCHMARK).examples
    assert kept[2].segment == (5, 6)


OWN = {"video": "a.mp4", "query": " someone knocks ", "segment": [1, 2]}


def test_fields_of_jsonl_are_read(write: Write) -> None:
    more = {
        "video": "a.mp4",
        "query": "leaves",
        "segment": [3, 9],
        "video_duration": 8,
        "qid": "mine",
        "difficulty": 12,
        "prediction": [0, 1],
        "hint": [2, 8],
        "pass_rate": 0.5,
        "split": "train",
    }
    cut = {"video": "b.2", "query": "q", "segment": [0, 1], "window": [5, 9]}
    result = read_jsonl(write(lines(OWN, more, cut)), None, **TRAINING)
    assert fields_of(result) == [
        ("a:0", "a.mp4", "someone knocks", (1, 2), None),
        ("mine", "a.mp4", "leaves", (3, 8), 8),
        ("b.2:0", "b.2", "q", (0, 1), 4),  # a dot is not an extension
    ]
    example = result.examples[1]
    assert (example.difficulty, example.prediction, example.hint) == (12, (0, 1), (2, 8))
    assert example.extra == {"pass_rate": 0.5, "split": "train"}
    assert result.examples[2].window == (5, 9)


def test_unknown_keys_of_jsonl_are_kept_as_extra(write: Write) -> None:
    own = {"id": 7, "vid": "x", "video_id": "y", "query_type": "z", "difficulty_rank": 3}
    (example,) = read_jsonl(write(lines({**OWN, **own})), None, **TRAINING).examples
    assert example.extra == own


CHARADES = {"a": {"timestamps": [[1, 2]], "sentences": ["someone knocks"]}}


@pytest.mark.parametrize(
    "content",
    [
        lines(OWN),
        "\n" + lines(OWN),
        "\ufeff" + lines(OWN),
        json.dumps(OWN),
        json.dumps(OWN, indent=1),
        json.dumps([OWN]),
        json.dumps([OWN], indent=1),
        json.dumps(CHARADES),
        json.dumps(CHARADES, indent=1),
    ],
    ids=[
        *("lines", "blank line first", "byte order mark", "one line", "one over several lines"),
        *("list", "indented list", "charades", "indented"),
    ],
)
def test_the_custom_reader_detects_the_format_by_content(write: Write, content: str) -> None:
    (example,) = read_custom(write(content), None, **TRAINING).examples
    assert (example.qid, example.query, example.segment) == ("a:0", "someone knocks", (1, 2))


def read_text_without_lengths(path: Path, video_dir: None, **rules: bool) -> ReadResult:
    return read_charades_txt(path, video_dir, lengths_file=[], **rules)


def changed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**record, **changes}


SHAPES = r'expected \{"video", .* or \{video_id: \{"timestamps", "sentences"\}\}, got '
HUGE = 10**400  # too large for a float
DEEP = "[" * 100_000

BAD = [
    (read_time_r1, {"a": 1}, "expected a JSON list of queries, got dict"),
    (read_time_r1, [TIME_R1, 3], "entry 1: expected an object with video, timestamp and sentence"),
    (read_time_r1, [changed(TIME_R1, video=None)], "entry 0: video: expected a text, got NoneType"),
    (read_time_r1, [changed(TIME_R1, video=" ")], "entry 0: video: expected a text, got an empty"),
    (read_time_r1, [changed(TIME_R1, timestamp=[1])], r"entry 0: timestamp: expected \[start"),
    (read_time_r1, [changed(TIME_R1, duration=-1)], "entry 0: expected 0 or more seconds"),
    (read_time_r1, [changed(TIME_R1, difficulty="x")], "entry 0: difficulty: expected a number"),
    (read_time_r1, [changed(TIME_R1, pred=[1])], r"entry 0: pred: expected \[start, end\]"),
    (read_time_r1, [changed(TIME_R1, qid=[1])], "entry 0: qid: expected a text"),
    (read_time_r1, [changed(TIME_R1, video_end=None)], "entry 0: video_start and video_end: exp"),
    (read_time_r1, [changed(TIME_R1, video_end=10)], "entry 0: video_start and video_end: exp"),
    (read_time_r1, [changed(TIME_R1, video_start=-1)], "expected 0 <= start < end in seconds"),
    (read_tvgbench, [changed(TVGBENCH, answer="1.5")], "entry 0: answer: expected 'start-end'"),
    (read_tvgbench, [changed(TVGBENCH, answer=None)], "entry 0: answer: expected 'start-end'"),
    (read_tvgbench, [changed(TVGBENCH, start=1)], "entry 0: start and end: expected"),
    (read_tvgbench, [changed(TVGBENCH, question=3)], "entry 0: question: expected a text"),
    (read_tvgbench, [changed(TVGBENCH, qsemtype=3)], "entry 0: qsemtype: expected a text"),
    (read_timelens_100k, [1], "line 1: expected an object with video_path"),
    (read_timelens_100k, changed(TIMELENS, events=None), "line 1: expected a list as events"),
    (read_timelens_100k, changed(TIMELENS, events=[1]), r"line 1: events\[0\]: expected an obj"),
    (
        read_timelens_100k,
        changed(TIMELENS, events=[{"query": "q", "span": []}]),
        r"line 1: events\[0\]: span: expected \[start, end\]",
    ),
    (
        read_timelens_100k,
        changed(TIMELENS, events=[{"query": "q", "span": [[1, 2], [3]]}]),
        r"line 1: events\[0\]: span: expected \[start, end\]",
    ),
    (read_jsonl, [OWN], "line 1: expected an object with video, query and segment, got list"),
    (read_jsonl, changed(OWN, segment=None), r"line 1: segment: expected \[start, end\]"),
    (read_jsonl, changed(OWN, query=None), "line 1: query: expected a text"),
    (read_jsonl, changed(OWN, window=[3, 1]), "line 1: window: expected 0 <= start < end"),
    (read_jsonl, changed(OWN, hint=[3, 1]), "line 1: hint: expected start < end"),
    (read_custom, {"video": "a", "segment": [1, 2]}, "line 1: query: expected a text"),
    *(
        (
            read_custom,
            {**{k: v for k, v in OWN.items() if k != meant}, key: OWN.get(meant, 5)},
            f"line 1: unknown key '{key}'; did you mean '{meant}'",
        )
        for key, meant in {
            "querry": "query",
            "segments": "segment",
            "vidéo": "video",
            "difficulti": "difficulty",
            "durations": "duration",
            "windows": "window",
            "predicton": "prediction",
            "qurey": "query",
        }.items()
    ),
    (read_timelens_100k, changed(TIMELENS, evnts=[]) | {"events": None}, "did you mean 'events'"),
    (read_custom, lines(OWN) + "{\n", "line 2: not JSON"),
    (read_custom, "", "is empty"),
    (read_custom, {}, SHAPES + "dict {}"),
    (read_custom, [], SHAPES + r"list \[\]"),
    (read_custom, {"videos": [OWN]}, "line 1: " + SHAPES + "dict"),
    (read_custom, json.dumps({"videos": [OWN]}, indent=1), "annotations: " + SHAPES + "dict"),
    (read_custom, [OWN, 3], "entry 1: " + SHAPES + "int 3"),
    (read_custom, [OWN, changed(OWN, query=None)], "entry 1: query: expected a text"),
    (read_custom, lines(OWN, {"vid": "a"}), "line 2: " + SHAPES + "dict"),
    (read_custom, {"a": CHARADES["a"], "b": 3}, "line 1: " + SHAPES),
    (read_custom, json.dumps({"a": CHARADES["a"], "b": 3}, indent=1), "id 'b': expected an object"),
    (read_text_without_lengths, TEXT, "line 1: no length of AB"),
    (read_text_without_lengths, "AB 0 1e999##a", "line 1: expected 'VIDEO start end##sentence'"),
    (
        read_charades,
        {"v": {"timestamps": [[0, HUGE]], "sentences": ["s"]}},
        r"timestamps\[0\]: exp",
    ),
    (read_charades, {"v": {"duration": HUGE}}, "id 'v': expected 0 or more seconds"),
    (read_time_r1, [changed(TIME_R1, difficulty=HUGE)], "entry 0: difficulty: expected a number"),
    (read_tvgbench, [changed(TVGBENCH, answer="0-" + "9" * 400)], "answer: expected 'start-end'"),
    (read_jsonl, lines(OWN) + '{"video": ' + "9" * 5000 + "}", "line 2: JSON that cannot be read"),
    (read_jsonl, lines(OWN) + DEEP, "line 2: expected annotations, got JSON nested too deeply"),
    (read_custom, DEEP, "annotations: expected annotations, got JSON nested too deeply"),
    (read_charades, '{"v": ' + DEEP, "annotations: expected annotations, got JSON nested too"),
]


@pytest.mark.parametrize(("reader", "content", "problem"), BAD)
def test_invalid_content_is_refused_with_its_file(
    write: Write, reader: Callable[..., ReadResult], content: Any, problem: str
) -> None:
    path = write(content)
    for rules in (TRAINING, BENCHMARK):
        with pytest.raises(ValueError, match=problem) as caught:
            reader(path, None, **rules)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        (read_charades, {"v": {"timestamps": [[1, 2]], "sentences": ["s"]}}),
        (partial(read_charades_txt, lengths_file="lengths.csv"), "v 1 2##s\n"),
        (read_time_r1, [{"video": "v", "timestamp": [1, 2], "sentence": "s"}]),
        (read_tvgbench, [{"path": "v", "question": "s", "answer": "1-2"}]),
        (read_timelens_100k, {"video_path": "v", "events": [{"query": "s", "span": [1, 2]}]}),
        (read_jsonl, {"video": "v", "query": "s", "segment": [1, 2]}),
        (read_custom, {"video": "v", "query": "s", "segment": [1, 2]}),
    ],
    ids=["charades", "txt", "time_r1", "tvgbench", "timelens", "jsonl", "custom"],
)
def test_every_reader_applies_extensions_and_on_missing(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reader: Callable[..., ReadResult],
    content: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lengths.csv").write_text("id,length\nv,10\n")
    path = write(content)
    (tmp_path / "v.ogv").touch()
    with pytest.raises(ValueError, match="1 of 1 ids have no video file"):
        reader(path, tmp_path, extensions=("mp4",), on_missing="error", **TRAINING)
    with pytest.raises(ValueError, match="no example is left"):
        reader(path, tmp_path, extensions=("mp4",), on_missing="skip", **TRAINING)
    result = reader(path, tmp_path, extensions=("ogv",), on_missing="error", **TRAINING)
    assert [(e.qid, e.video_path) for e in result.examples] == [("v:0", tmp_path / "v.ogv")]


def durations(result: ReadResult) -> list[float | None]:
    return [example.duration_s for example in result.examples]


def test_a_null_duration_falls_back_to_the_other_key(write: Write) -> None:
    stated = {"duration": None, "video_duration": 10}
    assert durations(read_jsonl(write(lines(changed(OWN, **stated))), None, **TRAINING)) == [10]
    entry = {**CHARADES["a"], **stated}
    assert durations(read_charades(write({"a": entry}), None, **TRAINING)) == [10]


def test_numbers_may_be_strings(write: Write) -> None:
    own = changed(OWN, duration=" 30.96", segment=["1", "2.5e0"], difficulty="40", window=["0", 40])
    (example,) = read_jsonl(write(lines(own)), None, **TRAINING).examples
    assert (example.duration_s, example.segment) == (30.96, (1, 2.5))
    assert (example.difficulty, example.window) == (40, (0, 40))
    for text in ("nan", "inf", "1e999", "1_0", "", "\u0663"):
        with pytest.raises(ValueError, match="line 1: expected 0 or more seconds"):
            read_jsonl(write(lines(changed(OWN, duration=text))), None, **TRAINING)


@pytest.mark.parametrize("rules", [TRAINING, BENCHMARK], ids=["training", "benchmark"])
def test_a_zero_duration_means_unknown(write: Write, rules: dict[str, bool]) -> None:
    entry = {"duration": 0, "timestamps": [[1, 2]], "sentences": ["s"], "hints": [[0, 5]]}
    result = read_charades(write({"a": entry}), None, **rules)
    assert fields_of(result) == [("a:0", "a", "s", (1, 2), None)]
    defect = result.report.defects["with a duration of 0"]
    assert (defect.count, defect.action, defect.example_ids) == (1, "taken as not stated", ["a:0"])
    cut = changed(OWN, duration=0, window=[5, 9])
    assert durations(read_jsonl(write(lines(cut)), None, **rules)) == [4]


@pytest.mark.parametrize(
    ("start", "end", "window"),
    [(0, None, None), (None, 12, (0, 12)), ("0", None, None), ("4", "12", (4, 12))],
)
def test_one_end_of_a_window_may_be_missing(
    write: Write, start: Any, end: Any, window: tuple[float, float] | None
) -> None:
    record = {"video": "a", "timestamp": [1, 2], "sentence": "s"}
    record = {**record, "video_start": start, "video_end": end}
    bench = {"path": "a", "question": "q", "answer": "1-2", "start": start, "end": end}
    for result in (
        read_time_r1(write([record]), None, **TRAINING),
        read_tvgbench(write([bench]), None, **BENCHMARK),
        read_jsonl(write(lines(changed(OWN, window=[start, end]))), None, **TRAINING),
    ):
        assert [example.window for example in result.examples] == [window]
        assert durations(result) == [None if window is None else window[1] - window[0]]


def test_hints_of_other_types_are_ignored(write: Write) -> None:
    for hints in ("look left", {"a": 1}, 3, True):
        result = read_charades(write({"a": {**CHARADES["a"], "hints": hints}}), None, **TRAINING)
        assert [example.hint for example in result.examples] == [None]


def test_spans_may_be_nested_in_a_list(write: Write) -> None:
    entry = {"spans": [[[1, 2]], [3, 4], [[5, 6], [7, 8]]], "queries": ["one", "two", "three"]}
    result = read_charades(write({"a": entry}), None, **TRAINING)
    assert [example.segment for example in result.examples] == [(1, 2), (3, 4)]
    assert result.report.dropped == {"with several spans": 1}
    kept = read_charades(write({"a": entry}), None, **BENCHMARK).examples
    assert [example.segment for example in kept] == [(1, 2), (3, 4), (5, 6)]


def test_mov_and_m4v_videos_are_found(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a.mov").touch()
    (tmp_path / "b.M4V").touch()
    own = [changed(OWN, video="a.mov"), changed(OWN, video="b")]
    result = read_custom(write(lines(*own)), tmp_path, **TRAINING)
    assert [(e.qid, e.video_path) for e in result.examples] == [
        ("a:0", tmp_path / "a.mov"),
        ("b:0", tmp_path / "b.M4V"),
    ]


def test_value_errors_of_custom_readers_are_user_messages(tmp_path: Path) -> None:
    code = compile(
        "raise ValueError(f'{path}: line 3: got nonsense')", "/elsewhere/mine.py", "exec"
    )

    @annotation_reader
    def read_mine(path: Path, *, extensions: Any) -> Any:
        exec(code, {"path": path.name})
        yield

    with pytest.raises(ValueError, match=r"^a\.txt: line 3: got nonsense$") as caught:
        read_mine(tmp_path / "a.txt", None, clamp_ends=True, drop_invalid=True)
    assert user_message(caught.value) == "a.txt: line 3: got nonsense"
