"""Tests that written annotations are read back unchanged."""

import functools
import json
from dataclasses import replace

import pytest

from tvg.data.annotation_writer import annotation_text
from tvg.data.padding import pad_examples
from tvg.data.readers import read_charades, read_jsonl, read_time_r1
from tvg.types import GroundingExample, Segment

TRAINING = {"clamp_ends": True, "drop_invalid": True}
BENCHMARK = {"clamp_ends": False, "drop_invalid": False}
READERS = {".json": read_time_r1, ".jsonl": read_jsonl}


def make(qid, **changes):
    settings = {
        "video": "folder/v.mp4",
        "video_path": None,
        "query": "who “opens” the\ndoor \u2028 一",
        "segment": Segment(0.1 + 0.2, 7.5),
        "duration_s": 20.3,
    }
    return GroundingExample(qid=qid, **{**settings, **changes})


EXAMPLES = [
    make("a:0"),
    make("7", video="b", window=Segment(3.25, 23.25), duration_s=20.0, difficulty=100 / 3),
    make("a:1#2", prediction=Segment(1 / 3, 2.0), difficulty=0.0, query="x"),
    make("c", duration_s=None, segment=Segment(9.0, 90.0), extra={"source": "u", "rate": 0.25}),
    make("d", segment=Segment(5.0, 4.0)),
    make("e", query="lone \ud800 surrogate", extra={"note": "\udfff"}),
]


def read_back(path, examples, **rules):
    path.write_text(annotation_text(path, examples), encoding="utf-8")
    return READERS[path.suffix](path, None, **rules).examples


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_written_annotations_are_read_back(tmp_path, name):
    assert read_back(tmp_path / name, EXAMPLES, **BENCHMARK) == EXAMPLES


def test_jsonl_keeps_hints(tmp_path):
    hinted = [make("a", hint=Segment(2.0, 19.0))]
    assert read_back(tmp_path / "list.jsonl", hinted, **BENCHMARK) == hinted
    assert read_back(tmp_path / "list.json", hinted, **BENCHMARK) == [make("a")]


def test_a_lead_in_is_not_written(tmp_path):
    pad = functools.partial(pad_examples, pad_s=8.0, kind="blank", seed=1)
    plain = [make("a", prediction=Segment(1.0, 2.0), hint=Segment(0.0, 8.0))]
    assert pad(plain)[0].segment != plain[0].segment
    (back,) = read_back(tmp_path / "list.jsonl", pad(plain), **BENCHMARK)
    for name in ("segment", "prediction", "hint"):
        assert tuple(getattr(back, name)) == pytest.approx(getattr(plain[0], name), abs=1e-6)
    assert back.duration_s == pytest.approx(20.3, abs=1e-6)


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_public_lists_are_read_back(tmp_path, shared_dir, name):
    """These training lists contain windows, clamped ends and query ids."""
    data = shared_dir / "data"
    for reader, file in (
        (read_time_r1, data / "timer1" / "train_2k5.json"),
        (read_charades, data / "charades_sta" / "train.json"),
    ):
        if not file.is_file():
            pytest.skip(f"no {file}")
        examples = reader(file, None, **TRAINING).examples
        if name == "list.jsonl":  # JSONL has only the stripped query
            examples = [replace(example, raw_query=None) for example in examples]
        assert read_back(tmp_path / name, examples, **TRAINING) == examples


def test_examples_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends with \.json .* or \.jsonl, got 'list\.csv'"):
        annotation_text("list.csv", EXAMPLES)
    with pytest.raises(ValueError, match="a:0: an annotation file needs a true segment, got none"):
        annotation_text("list.json", [make("a:0", segment=None)])


def test_json_lists_are_written_in_time_r1_format():
    (row,) = json.loads(annotation_text("list.json", [EXAMPLES[1]]))
    assert row == {
        "qid": "7",
        "video": "b",
        "sentence": EXAMPLES[1].query,
        "timestamp": [0.1 + 0.2, 7.5],
        "duration": 20.0,
        "video_start": 3.25,
        "video_end": 23.25,
        "difficulty": 100 / 3,
    }
