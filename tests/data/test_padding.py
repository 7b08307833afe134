"""Tests that a lead-in before each clip shifts all times of its examples."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tvg.data.padding import lead_in_of, no_padding, pad_examples
from tvg.data.video.clip import ClipLoader
from tvg.data.video.pyav_decoder import PyAVDecoder
from tvg.data.video.sampling import FrameSampling
from tvg.types import GroundingExample, LeadIn, Segment


def example(video: str = "v", **changes: Any) -> GroundingExample:
    return replace(
        GroundingExample(
            qid="q",
            video=video,
            video_path=None,
            query="a person sits",
            segment=Segment(1.0, 4.5),
            duration_s=30.0,
        ),
        **changes,
    )


def pad(examples: list[GroundingExample], **changes: Any) -> list[GroundingExample]:
    return pad_examples(examples, **{"pad_s": 10.0, "kind": "random", "seed": 0} | changes)


def test_all_times_shift_by_the_lead_in():
    before = example(hint=Segment(0.0, 8.0), prediction=Segment(2.0, 3.0), difficulty=12.0)
    (after,) = pad([before])
    assert after.lead_in is not None
    by_s = after.lead_in.length_s
    assert 0 <= by_s < 10
    assert after.segment == Segment(1.0 + by_s, 4.5 + by_s)
    assert after.hint == Segment(0.0 + by_s, 8.0 + by_s)
    assert after.prediction == Segment(2.0 + by_s, 3.0 + by_s)
    assert after.duration_s == 30.0 + by_s
    unmoved = {"lead_in", "segment", "hint", "prediction", "duration_s"}
    for name in set(GroundingExample.__slots__) - unmoved:
        assert getattr(after, name) == getattr(before, name), name


def test_unknown_values_stay_unknown():
    (after,) = pad([example(segment=None, duration_s=None)])
    assert after.segment is after.duration_s is after.hint is after.prediction is None
    assert after.lead_in is not None


def test_a_clips_lead_in_does_not_depend_on_order():
    window = Segment(2.0, 20.0)
    examples = [example(f"v{n % 40}", qid=str(n)) for n in range(80)]
    examples += [example("v3", qid="w", window=window)]
    padded = {e.qid: e.lead_in for e in pad(examples)}
    random.Random(1).shuffle(examples)
    assert padded == {e.qid: e.lead_in for e in pad(examples)}
    assert pad(examples[:1])[0].lead_in == padded[examples[0].qid]
    assert all(padded[str(n)] == padded[str(n + 40)] for n in range(40))
    assert len(set(padded.values())) == 41  # 40 videos, and a window of one of them
    other = {e.qid: e.lead_in for e in pad(examples, seed=1)}
    assert all(other[qid] != padded[qid] for qid in padded)


def test_lead_ins_are_the_same_on_every_machine():
    # sha256 of '[0, "v", null]': the cache and the scores of a padded set depend on it.
    found = lead_in_of(example(), pad_s=16.0, kind="random", seed=0)
    assert found == LeadIn(6.030536211599724, "noise", 52418223322429)


def test_lengths_are_uniform_and_kinds_even():
    lead_ins = [e.lead_in for e in pad([example(f"v{n}") for n in range(4000)])]
    tenths = Counter(int(lead_in.length_s) for lead_in in lead_ins)
    assert sorted(tenths) == list(range(10))
    assert all(count == pytest.approx(400, abs=80) for count in tenths.values())  # 4 sigma
    kinds = Counter(lead_in.kind for lead_in in lead_ins)
    assert set(kinds) == {"blank", "noise"}
    assert kinds["blank"] == pytest.approx(2000, abs=130)
    assert len({lead_in.seed for lead_in in lead_ins}) == 4000


@pytest.mark.parametrize("kind", ["blank", "noise", "freeze"])
def test_the_kind_of_lead_in_can_be_fixed(kind: str):
    examples = [example(f"v{n}") for n in range(20)]
    fixed, free = pad(examples, kind=kind), pad(examples)
    assert {e.lead_in.kind for e in fixed} == {kind}
    assert [e.lead_in.length_s for e in fixed] == [e.lead_in.length_s for e in free]


def test_no_padding_changes_nothing():
    examples = [example("a"), example("b")]
    assert no_padding(examples) == pad(examples, pad_s=0) == examples


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"pad_s": -1}, r"data\.padding\.pad_s .* got -1"),
        ({"pad_s": float("nan")}, r"data\.padding\.pad_s"),
        ({"pad_s": float("inf")}, r"data\.padding\.pad_s"),
        ({"kind": "static"}, r"data\.padding\.kind: expected one of blank, .* got 'static'"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        pad([example()], **changes)


def test_the_shifted_segment_starts_at_the_same_frame(
    tmp_path: Path, write_video: Callable[..., Path]
):
    path = write_video(tmp_path / "v.mp4", num_frames=100)
    loader = ClipLoader(
        sampling=FrameSampling(fps=25, max_pixels=28 * 28 * 16),
        decoder=PyAVDecoder(num_threads=1),
        timeout_s=None,
    )
    before = example(video_path=path, segment=Segment(1.0, 2.0), duration_s=4.0)
    (after,) = pad([before], pad_s=4.0)
    plain, padded = loader.load(path), loader.load(path, lead_in=after.lead_in)
    assert padded.duration_s == pytest.approx(after.duration_s, abs=0.5 / 25)
    nearest = (padded.frame_times_s - after.segment.start_s).abs().argmin()
    assert padded.frame_times_s[nearest].item() == pytest.approx(
        after.segment.start_s, abs=0.5 / 25 + 1e-9
    )
    assert (padded.frames[nearest] == plain.frames[25]).all()
