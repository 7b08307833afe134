"""Tests of the synthetic world (the generated data set): reproducible, with exact annotations."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvg.synthetic import write
from tvg.synthetic.drawing import draw_clip
from tvg.synthetic.encoding import encode_h264
from tvg.synthetic.templates import COLOURS, MOTIONS, SENTENCES, all_queries
from tvg.synthetic.world import (
    DIFFICULTIES,
    SPLITS,
    coarse_segment,
    script_clip,
    world_settings,
)
from tvg.synthetic.write import write_world
from tvg.types import Segment

SMALL = {"train": 3, "val": 1, "test": 2}
MEDIUM = world_settings(difficulty="medium")


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate)


def scripts(num, *, split="train", seed=3, settings=MEDIUM):
    return [script_clip(split=split, index=i, seed=seed, settings=settings) for i in range(num)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "drawn"
    return write_world(root, settings=MEDIUM, num_clips=SMALL, seed=3, num_workers=0)


def test_files_are_h264_clips_with_charades_annotations(world):
    for split, num in SMALL.items():
        clips = json.loads((world / f"{split}.json").read_text())
        assert len(clips) == num
        for video_id, clip in clips.items():
            frames, fps = decode(world / "videos" / f"{video_id}.mp4")
            assert fps == MEDIUM.fps
            assert frames.shape[1:] == (MEDIUM.frame_size, MEDIUM.frame_size, 3)
            assert len(frames) / fps == pytest.approx(clip["duration"], abs=1e-9)
            assert len(clip["sentences"]) == len(clip["timestamps"]) == len(clip["hints"])
            for (start, end), (coarse_start, coarse_end) in zip(
                clip["timestamps"], clip["hints"], strict=True
            ):
                assert 0 <= coarse_start <= start < end <= coarse_end <= clip["duration"]


def test_same_seed_writes_equal_bytes_and_other_seeds_differ(world, tmp_path):
    again = write_world(tmp_path / "a", settings=MEDIUM, num_clips=SMALL, seed=3, num_workers=2)
    other = write_world(tmp_path / "b", settings=MEDIUM, num_clips=SMALL, seed=4, num_workers=0)
    names = sorted(p.relative_to(world) for p in world.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for name in names:
        assert (world / name).read_bytes() == (again / name).read_bytes(), name
        assert (world / name).read_bytes() != (other / name).read_bytes(), name


def test_clips_are_independent_of_their_number_and_never_repeat():
    assert scripts(2) == scripts(5)[:2]
    seen = [
        (s.num_frames, s.events, s.drawing_seed)
        for split in SPLITS
        for s in scripts(40, split=split)
    ]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("motion", list(MOTIONS))
@pytest.mark.parametrize("shape", ["square", "circle", "triangle", "cross", "diamond", "ring"])
def test_event_is_visible_and_moves_only_in_its_frames(shape, motion):
    settings = replace(MEDIUM, max_events=1, num_distractors=0, noise=0.0)
    script = script_clip(split="train", index=0, seed=1, settings=settings)
    event = replace(script.events[0], colour="green", shape=shape, motion=motion)
    frames = draw_clip(replace(script, events=(event,))).astype(int)
    empty = draw_clip(replace(script, events=())).astype(int)
    changed = np.abs(frames - empty).max(axis=-1) > 12
    on_screen = changed.any(axis=(1, 2))
    expected = np.zeros(script.num_frames, bool)
    expected[event.first_frame : event.end_frame] = True
    np.testing.assert_array_equal(on_screen, expected)
    if motion != "spin" or shape not in ("circle", "ring"):
        moving = frames[event.first_frame : event.end_frame]
        assert (np.abs(np.diff(moving, axis=0)).max(axis=(1, 2, 3)) > 0).mean() > 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_colour_is_visible_exactly_during_the_annotated_segment(tmp_path, seed):
    settings = replace(MEDIUM, num_colours=4, lookalike=0.0)  # no two events of one colour
    root = write_world(
        tmp_path / "w", settings=settings, num_clips={"train": 3}, seed=seed, num_workers=0
    )
    checked = 0
    for video_id, clip in json.loads((root / "train.json").read_text()).items():
        frames, fps = decode(root / "videos" / f"{video_id}.mp4")
        for (start, end), sentence in zip(clip["timestamps"], clip["sentences"], strict=True):
            colour = next(c for c in COLOURS if c in sentence.split())
            distance = np.abs(frames.astype(int) - np.array(COLOURS[colour])).sum(axis=-1)
            num_alike = (distance < 110).sum(axis=(1, 2))
            times = np.arange(len(frames)) / fps
            inside = (times >= start) & (times < end)
            assert num_alike[~inside].max(initial=0) <= 3
            # Another event may cover this one for a moment, and blinking events fade.
            assert (num_alike[inside] > 3).mean() > 0.5
            first, last = np.flatnonzero(num_alike > 3)[[0, -1]]
            checked += abs(times[first] - start) < 1e-9 and abs(times[last] + 1 / fps - end) < 1e-9
    assert checked >= 3


@pytest.mark.parametrize("difficulty", list(DIFFICULTIES))
def test_query_names_exactly_one_event_of_its_clip(difficulty):
    settings = world_settings(difficulty=difficulty)
    known = set(all_queries())
    for script in scripts(200, settings=settings):
        assert 1 <= len(script.events) <= settings.max_events
        pairs = [(e.colour, e.shape) for e in script.events]
        assert len(set(pairs)) == len(pairs)
        for event, query in zip(script.events, script.queries, strict=True):
            assert query in known
            named = [p for p in pairs if all(word in query.rstrip(".").split() for word in p)]
            assert named == [(event.colour, event.shape)]
        assert all(t.colour == "dark" for t in script.distractors)


def test_easy_share_applies_to_training_clips_only():
    settings = replace(MEDIUM, min_events=2, max_events=3, easy_share=0.5)
    train = [len(s.events) == 1 and not s.distractors for s in scripts(400, settings=settings)]
    assert np.mean(train) == pytest.approx(0.5, abs=0.08)
    assert all(len(s.events) > 1 for s in scripts(100, split="test", settings=settings))


def test_annotation_order_is_independent_of_time():
    firsts = [
        (s.events[0].first_frame, s.events[1].first_frame)
        for s in scripts(2000, split="test")
        if len(s.events) > 1
    ]
    in_order = [0.5 if a == b else a < b for a, b in firsts]
    assert np.mean(in_order) == pytest.approx(0.5, abs=0.05)


def test_the_best_constant_answer_scores_low():
    """An answer that ignores the video scores far below the demo's trained policy."""
    train = np.array([segment for s in scripts(400) for segment in s.segments])
    test = np.array([segment for s in scripts(200, split="test") for segment in s.segments])

    def mean_iou(guess, truth):
        shared = np.minimum(truth[:, 1], guess[1]) - np.maximum(truth[:, 0], guess[0])
        shared = np.clip(shared, 0, None)
        return (shared / (truth[:, 1] - truth[:, 0] + guess[1] - guess[0] - shared)).mean()

    guesses = [(s, e) for s in range(0, 16) for e in range(s + 1, 21)]
    best = max(guesses, key=lambda guess: mean_iou(guess, train))
    assert mean_iou(best, test) < 0.33
    random_guesses = np.random.default_rng(0).permutation(train)[: len(test)]
    paired = [mean_iou(g, t[None]) for g, t in zip(random_guesses, test, strict=True)]
    assert np.mean(paired) < 0.22


def test_colours_are_balanced_over_queries():
    first = [q.split()[1] for s in scripts(300) for q in s.queries if q.startswith("The ")]
    counts = np.unique(first, return_counts=True)[1]
    assert len(counts) == MEDIUM.num_colours
    assert counts.min() > 0.5 * counts.max()


def test_coarse_share_of_segment_ends_is_rounded_to_the_grid():
    moved = on_grid = total = 0
    for script in scripts(400):
        for hint, exact in zip(script.hints, script.segments, strict=True):
            for coarse, true in zip(hint, exact, strict=True):
                if true % MEDIUM.coarse_grid_s and coarse != script.duration_s:
                    total += 1
                    moved += coarse != true
                    on_grid += coarse % MEDIUM.coarse_grid_s == 0
    assert moved / total == pytest.approx(MEDIUM.coarse_share, abs=0.05)
    assert on_grid == moved


@given(
    start=st.integers(0, 150),
    length=st.integers(1, 80),
    after=st.integers(0, 50),
    grid=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    both=st.tuples(st.booleans(), st.booleans()),
)
def test_coarse_segment_contains_the_exact_one_within_the_clip(start, length, after, grid, both):
    exact = Segment(start / 8, (start + length) / 8)
    duration = (start + length + after) / 8
    coarse = coarse_segment(
        exact, duration_s=duration, grid_s=grid, round_start=both[0], round_end=both[1]
    )
    assert 0 <= coarse.start_s <= exact.start_s
    assert exact.end_s <= coarse.end_s <= duration
    assert exact.start_s - coarse.start_s < grid
    assert coarse.end_s - exact.end_s < grid
    if not any(both):
        assert coarse == exact


def test_coarse_segment_equals_hand_computed_ends():
    exact = Segment(3.5, 7.25)
    rounded = coarse_segment(exact, duration_s=20, grid_s=2, round_start=True, round_end=True)
    assert rounded == (2.0, 8.0)
    clamped = coarse_segment(exact, duration_s=7.5, grid_s=2, round_start=False, round_end=True)
    assert clamped == (3.5, 7.5)


def test_existing_world_is_reused_and_never_overwritten(world):
    stamps = {p: p.stat().st_mtime_ns for p in world.rglob("*.mp4")}
    write_world(world, settings=MEDIUM, num_clips=SMALL, seed=3, num_workers=0)
    assert stamps == {p: p.stat().st_mtime_ns for p in world.rglob("*.mp4")}
    with pytest.raises(ValueError, match="other settings"):
        write_world(world, settings=MEDIUM, num_clips=SMALL, seed=4, num_workers=0)
    with pytest.raises(ValueError, match="not a synthetic world"):
        write_world(world / "videos", settings=MEDIUM, num_clips=SMALL, seed=3, num_workers=0)


def test_processes_that_start_together_generate_once(tmp_path, monkeypatch):
    drawn = []
    draw_all = write._draw_all

    def counted(scripts, folder, num_workers):
        drawn.append(folder)
        time.sleep(0.3)
        yield from draw_all(scripts, folder, num_workers)

    monkeypatch.setattr(write, "_draw_all", counted)
    settings = {"settings": MEDIUM, "num_clips": SMALL, "seed": 1, "num_workers": 0}
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(write_world, tmp_path / "world", **settings) for _ in range(2)]
        assert [job.result() for job in jobs] == [tmp_path / "world"] * 2
    assert len(drawn) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "world"]


def test_progress_of_generation_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tvg.synthetic.write.SILENT_S", 0)
    write_world(tmp_path / "w", settings=MEDIUM, num_clips=SMALL, seed=3, num_workers=0)
    total = sum(SMALL.values())
    assert "generating videos: 100%" in (shown := capsys.readouterr().err)
    assert f"{total}/{total}" in shown


def test_interrupted_generation_leaves_no_files(tmp_path, monkeypatch):
    encode, encoded = encode_h264, []

    def stop(path, *args, **kwargs):
        encoded.append(path)
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encode(path, *args, **kwargs)

    monkeypatch.setattr("tvg.synthetic.write.encode_h264", stop)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "w", settings=MEDIUM, num_clips=SMALL, seed=3, num_workers=0)
    assert list(tmp_path.iterdir()) == []


def test_all_bad_settings_are_reported_together():
    with pytest.raises(ValueError, match=r"frame_size.*num_colours.*coarse_grid_s.*lookalike"):
        replace(MEDIUM, frame_size=63, num_colours=99, coarse_grid_s=0.0, lookalike=1.5)
    with pytest.raises(ValueError, match="easy, medium, hard, got 'brutal'"):
        world_settings(difficulty="brutal")
    with pytest.raises(ValueError, match="train, val, test, got 'dev'"):
        script_clip(split="dev", index=0, seed=0, settings=MEDIUM)
    with pytest.raises(ValueError, match="as many different colour-shape pairs"):
        replace(MEDIUM, num_colours=1, num_shapes=2, max_events=3)


def test_sentences_name_colour_shape_and_motion():
    for sentence in SENTENCES:
        assert "{colour} {shape}" in sentence
        assert ("{present}" in sentence) != ("{gerund}" in sentence)
