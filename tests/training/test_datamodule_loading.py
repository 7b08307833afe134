"""Tests of data loading: ranks, workers, resuming, selections, mixtures, caches and bad clips."""

import functools
import json
import logging
import re
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_policy import SMALL_FRAMES, make_parts

from tvg.data.annotations import AnnotationSet
from tvg.data.cache.frames import FrameCache
from tvg.data.collate import PromptCollator
from tvg.data.dataset import uncached
from tvg.data.padding import no_padding, pad_examples
from tvg.data.query_text import UNUSABLE_QUERY
from tvg.data.readers import read_charades, read_jsonl
from tvg.data.selection import keep_all, select_random
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.model.families.clip_text import VIDEO_TOKEN
from tvg.training.datamodule import GroundingDataModule, MixedDataModule
from tvg.training.datamodule_loaders import Envelope

LOADER = functools.partial(ClipLoader, sampling=SMALL_FRAMES, timeout_s=None)


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world)


@pytest.fixture
def settings(parts):
    """Settings that all data modules of this file share."""
    return {
        "name": "small",
        "on_missing": "error",
        "decoder": DecordDecoder(num_threads=1),
        "clip": LOADER,
        "cache": uncached,
        "selection": keep_all,
        "padding": no_padding,
        "batch_size": 2,
        "eval_batch_size": 2,
        "num_workers": 0,
        "shuffle": True,
        "memory_cache": False,
        "use_windows": True,
        "max_prompt_tokens": None,
        "limit_train": None,
        "limit_val": None,
        "limit_test": None,
        "task": parts.task,
        "processor": parts.processor,
        "family": parts.family,
        "seed": 0,
    }


def files_of(world, video_dir=None):
    return {
        "reader": read_charades,
        "world": None,
        "annotation_file": None,
        "annotation_split": None,
        "extensions": ["mp4"],
        "video_dir": str(video_dir or world / "videos"),
        **{f"{split}_file": str(world / f"{split}.json") for split in ("train", "val", "test")},
    }


@pytest.fixture
def make_data(settings, tiny_world):
    def make(*, rank=0, world_size=1, **changes):
        data = GroundingDataModule(**{**settings, **files_of(tiny_world), **changes})
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)
        return data

    return make


def qids(loader) -> list[list[str]]:
    opened = (batch.batch if isinstance(batch, Envelope) else batch for batch in loader)
    return [[example.qid for example in batch.examples] for batch in opened]


def flat(batches) -> list[str]:
    return [qid for batch in batches for qid in batch]


def equal(one, other) -> None:
    for name in ("input_ids", "pixel_values_videos", "video_grid_thw", "sampled_fps", "duration_s"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


# -- ranks and workers ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_ranks_share_an_odd_number_of_examples(make_data, num_workers):
    whole = [e.qid for e in make_data().examples("train")]
    num = len(whole) - 1 if len(whole) % 2 == 0 else len(whole)  # odd
    share = functools.partial(
        make_data, world_size=2, num_workers=num_workers, batch_size=1, limit_train=num, seed=3
    )
    ranks = [share(rank=rank).train_dataloader() for rank in (0, 1)]
    epochs = [[flat(qids(loader)) for _ in range(2)] for loader in ranks]
    for first, second in zip(*epochs, strict=True):
        assert len(first) == len(second) == -(-num // 2)  # equal numbers of steps
        assert set(first) | set(second) == set(whole[:num])
        assert len(first) + len(second) == num + 1  # one example is repeated as padding
    assert epochs[0][0] != epochs[0][1]  # a new order each epoch
    for rank, epoch in enumerate(epochs):
        again = share(rank=rank, num_workers=0).train_dataloader()
        assert [flat(qids(again)) for _ in range(2)] == epoch  # for any number of workers
        resumed = share(rank=rank).train_dataloader()
        resumed.load_state_dict({"epoch": 0, "batches_done": 2})
        assert [flat(qids(resumed)), flat(qids(resumed))] == [epoch[0][2:], epoch[1]]


def test_loader_state_counts_only_the_returned_batches(make_data):
    whole = qids(make_data().train_dataloader())
    loader = make_data().train_dataloader()
    batches = iter(loader)
    seen = [next(batches).batch.examples for _ in range(2)]
    state = loader.state_dict()
    resumed = make_data().train_dataloader()
    resumed.load_state_dict(state)
    assert [[e.qid for e in examples] for examples in seen] + qids(resumed) == whole


def test_without_shuffling_the_order_of_examples_is_kept(make_data):
    data = make_data(shuffle=False)
    expected = [e.qid for e in data.examples("train")]
    loader = data.train_dataloader()
    assert flat(qids(loader)) == flat(qids(loader)) == expected


def test_windows_may_be_ignored_in_training(make_data, tiny_world, tmp_path):
    """Time-R1 trains on entire files but rates windows. By default, we use windows in both."""
    (video, entry), *_ = json.loads((tiny_world / "train.json").read_text()).items()
    row = {"video": video, "query": "q", "segment": [0.5, 1.5], "window": [1.0, 4.0]}
    path = tmp_path / "windows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    for use_windows, training_s in ((True, 3.0), (False, entry["duration"])):
        data = make_data(reader=read_jsonl, train_file=str(path), use_windows=use_windows)
        (trained,) = data.train_dataloader()
        (scored,) = data.eval_loader("train")
        assert trained.batch.duration_s.item() == pytest.approx(training_s, abs=0.2)
        assert scored.duration_s.item() == pytest.approx(3.0, abs=0.2)
        assert trained.batch.examples[0].segment == scored.examples[0].segment == (0.5, 1.5)


# -- selection, padding and mixtures --------------------------------------------------------------


def test_selection_applies_to_training_only(make_data, caplog):
    pick = functools.partial(select_random, k=3, seed=0)
    data = make_data(selection=pick)
    everything = make_data().examples("train")
    with caplog.at_level(logging.INFO, logger="tvg"):
        assert data.examples("train") == pick(everything)
    assert f"selected 3, left out {len(everything) - 3}" in caplog.text
    assert data.examples("test") == make_data().examples("test")
    report = data.read("train").report
    assert report.num_examples == 3
    assert report.dropped == {"not selected": len(everything) - 3}
    assert report.num_queries == len(everything)
    assert make_data(selection=pick, limit_train=2).examples("train") == pick(everything)[:2]


@pytest.mark.parametrize("split", ["train", "test"])
def test_padding_applies_to_every_split_and_adds_frames(make_data, split):
    pad = functools.partial(pad_examples, pad_s=8.0, kind="blank", seed=1)
    padded, plain = make_data(padding=pad), make_data()
    assert padded.examples(split) == pad(plain.examples(split))
    moved = padded.eval_loader(split)
    for batch, before in zip(moved, plain.eval_loader(split), strict=True):
        lead_ins = [example.lead_in.length_s for example in batch.examples]
        added = (batch.duration_s - before.duration_s).tolist()
        assert added == pytest.approx(lead_ins, abs=0.5 / 4)  # rounded to frames, at 4 fps or more


def test_a_mixture_is_weighted_in_training_only(settings, make_data, tiny_world):
    def part(**changes):
        words = {**files_of(tiny_world), "name": "part", **changes}
        return functools.partial(AnnotationSet, **words)

    data = MixedDataModule(
        **settings,
        sets={"a": part(), "b": part(test_file=None)},
        weights={"a": 2.0, "b": 0.5},
        mix_seed=0,
    )
    plain = [e.qid for e in make_data().examples("train")]
    got = [e.qid for e in data.examples("train")]
    assert [got.count(f"a/{qid}") for qid in plain] == [2] * len(plain)
    assert len([qid for qid in got if qid.startswith("b/")]) == -(-len(plain) // 2)
    assert data.examples("train")[0].extra["set"] == "a"
    tests = [e.qid for e in data.examples("test")]
    assert tests == [f"a/{e.qid}" for e in make_data().examples("test")]
    assert sorted(flat(qids(data.train_dataloader()))) == sorted(got)


@pytest.fixture
def make_mixture(settings, tiny_world):
    def make(**changes):
        words = {**files_of(tiny_world), "name": "part"}
        sets = {name: functools.partial(AnnotationSet, **words) for name in ("a", "b")}
        more = {"sets": sets, "weights": {"a": 1.0, "b": 0.5}, "mix_seed": 0}
        return MixedDataModule(**{**settings, **more, **changes})

    return make


def test_mixture_depends_on_mix_seed_and_not_on_seed(make_mixture):
    shares = [[e.qid for e in make_mixture(seed=s).examples("train")] for s in range(4)]
    assert shares == [shares[0]] * 4
    others = [[e.qid for e in make_mixture(mix_seed=s).examples("train")] for s in range(4)]
    assert any(other != shares[0] for other in others)


def test_mixture_with_a_selection_counts_the_remaining_queries(make_mixture, make_data):
    num = len(make_data().examples("train"))
    num_half = -(-num // 2)
    pick = functools.partial(select_random, k=4, seed=0)
    data = make_mixture(weights={"a": 2.0, "b": 0.5}, selection=pick)
    result = data.read("train")
    left = {e.qid for e in result.examples}
    assert result.report.num_examples == len(left)
    assert result.report.dropped == {
        "outside this epoch's share": num - num_half,
        "not selected": num + num_half - len(left),
    }
    assert result.report.num_queries == 2 * num
    everything = make_mixture().read_whole("train")
    assert len({e.qid for e in everything}) == len(everything) == 2 * num


def test_validation_limit_is_shared_by_all_sets(make_mixture, make_data):
    num = len(make_data().examples("val"))
    assert num >= 3
    got = [e.qid for e in make_mixture(limit_val=4).examples("val")]
    plain = [e.qid for e in make_data().examples("val")][:2]
    assert got == [f"a/{qid}" for qid in plain] + [f"b/{qid}" for qid in plain]


def test_prediction_uses_the_test_split_or_the_last_available_one(make_data):
    assert flat(qids(make_data().predict_dataloader())) == [
        e.qid for e in make_data().examples("test")
    ]
    only = make_data(test_file=None, val_file=None)
    assert flat(qids(only.predict_dataloader())) == [e.qid for e in only.examples("train")]


# -- cache ----------------------------------------------------------------------------------------


def test_cached_batches_equal_decoded_batches(make_data, tmp_path):
    cache = functools.partial(FrameCache, folder=tmp_path / "cache")
    for _ in range(2):  # written, then read
        cached = make_data(cache=cache, batch_size=4).train_dataloader()
        plain = make_data(batch_size=4).train_dataloader()
        for one, other in zip(cached, plain, strict=True):
            equal(one.batch, other.batch)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6  # one per video, shared by its queries


def test_cached_clips_are_not_decoded(make_data, tmp_path):
    cache = functools.partial(FrameCache, folder=tmp_path / "cache")
    whole = qids(make_data(cache=cache).train_dataloader())
    assert qids(make_data(cache=cache, decoder=NoDecoder()).train_dataloader()) == whole


class NoDecoder(VideoDecoder):
    def open(self, path):
        raise AssertionError(f"{path} was opened")


# -- clips that cannot be read --------------------------------------------------------------------


class Hanging(VideoDecoder):
    """Decoder that hangs forever on one video."""

    def __init__(self, video: str) -> None:
        self.video = video

    def open(self, path):
        if self.video in str(path):
            time.sleep(3600)
        return DecordDecoder(num_threads=1).open(path)


@pytest.fixture
def broken(tmp_path, tiny_world):
    """Path of the first training video, truncated to 2,000 bytes in a copy of the videos."""
    shutil.copytree(tiny_world / "videos", tmp_path / "videos")
    name = next(iter(json.loads((tiny_world / "train.json").read_text())))
    path = tmp_path / "videos" / f"{name}.mp4"
    path.write_bytes(path.read_bytes()[:2000])
    return path


def test_unreadable_training_example_is_replaced_and_reported(make_data, broken, caplog):
    data = make_data(video_dir=str(broken.parent), on_missing="skip", shuffle=False, batch_size=4)
    examples = data.examples("train")
    bad = [e for e in examples if e.video_path == broken]
    assert bad
    replacement = next(e.qid for e in examples if e.video_path != broken)
    expected = [replacement if e in bad else e.qid for e in examples]
    for _ in range(2):
        with caplog.at_level(logging.WARNING, logger="tvg"):
            batches = [data.on_before_batch_transfer(b, 0) for b in data.train_dataloader()]
        assert [e.qid for batch in batches for e in batch.examples] == expected
    assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [text for text in lines if str(broken) in text]  # not repeated in each epoch
    assert line.startswith("example skipped: ")
    (num,) = data.unreadable.counts.values()
    assert num == 2 * len(bad)  # every query, both epochs


def test_evaluation_skips_unreadable_examples(make_data, broken):
    data = make_data(video_dir=str(broken.parent), on_missing="skip")
    expected = [e.qid for e in data.examples("train") if e.video_path != broken]
    batches = list(data.eval_loader("train"))
    assert [e.qid for batch in batches for e in batch.examples] == expected
    (problem,) = data.unreadable.counts
    assert problem.startswith(f"{broken}: ")


def test_coverage_counts_the_queries_without_a_score(make_data, broken, tiny_world):
    entries = json.loads((tiny_world / "train.json").read_text())
    num = {video: len(entry["sentences"]) for video, entry in entries.items()}
    missing = list(num)[1]
    (broken.parent / f"{missing}.mp4").unlink()
    num_missing, num_bad = num[missing], num[broken.stem]
    everything = sum(num.values())
    words = {"video_dir": str(broken.parent), "on_missing": "skip"}
    words["test_file"] = str(tiny_world / "train.json")
    data = make_data(**words)
    num_scored = len(flat(qids(data.eval_loader("test"))))
    assert num_scored == everything - num_missing - num_bad
    assert data.coverage("test", num_scored=num_scored) == {
        "queries": everything,
        "missing": num_missing,
        "unreadable": num_bad,
        "left_out": num_missing + num_bad,
        "beyond_limit": 0,
    }
    limited = make_data(**words, limit_test=1)
    assert limited.coverage("test", num_scored=1) == {
        "queries": everything,
        "missing": num_missing,
        "unreadable": 0,
        "left_out": num_missing,
        "beyond_limit": everything - num_missing - 1,
    }


def test_unreadable_clip_is_an_error_with_on_missing_error(make_data, broken):
    data = make_data(video_dir=str(broken.parent), shuffle=False)
    with pytest.raises(ValueError, match=str(broken)):
        list(data.train_dataloader())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_hanging_decoder_is_timed_out_and_its_clip_skipped(
    make_data, tiny_world, num_workers, caplog
):
    name = next(iter(json.loads((tiny_world / "train.json").read_text())))
    data = make_data(
        decoder=Hanging(name),
        clip=functools.partial(ClipLoader, sampling=SMALL_FRAMES, timeout_s=12.0),
        on_missing="skip",
        num_workers=num_workers,
    )
    examples = data.examples("train")
    healthy = {e.qid for e in examples if e.video != name}
    with caplog.at_level(logging.WARNING, logger="tvg"):
        batches = [data.on_before_batch_transfer(b, 0) for b in data.train_dataloader()]
    seen = [e.qid for batch in batches for e in batch.examples]
    assert len(seen) == len(examples)
    assert set(seen) == healthy
    assert f"{name}.mp4: was not decoded within the time limit of 12 s" in caplog.text


@pytest.mark.parametrize("on_missing", ["error", "skip"])
def test_segments_after_the_clip_are_not_trained_on(
    make_data, tiny_world, tmp_path, on_missing, caplog
):
    entries = json.loads((tiny_world / "train.json").read_text())
    video = next(iter(entries))
    times = [[0.0, 1.0], [100.0, 110.0], [1.0, 500.0]]
    entry = {"timestamps": times, "sentences": ["a", "b", "c"]}  # no duration is stated
    (tmp_path / "a.json").write_text(json.dumps({video: entry}))
    data = make_data(train_file=str(tmp_path / "a.json"), on_missing=on_missing, shuffle=False)
    with caplog.at_level(logging.WARNING, logger="tvg"):
        batches = [data.on_before_batch_transfer(b, 0) for b in data.train_dataloader()]
    rows = [row for b in batches for row in zip(b.examples, b.duration_s.tolist(), strict=True)]
    assert [e.qid for e, _ in rows] == [f"{video}:{index}" for index in (0, 2, 2)]
    assert [e.segment for e, _ in rows[1:]] == [(1.0, duration_s) for _, duration_s in rows[1:]]
    assert f"example skipped: {video}:1: the segment 100 to 110 s starts after the end of" in (
        caplog.text
    )
    assert list(data.unreadable.counts.values()) == [1]
    scored = [e for batch in data.eval_loader("train") for e in batch.examples]
    assert [list(e.segment) for e in scored] == times


# -- unusable queries ------------------------------------------------------------------------------

BAD_QUERIES = {
    "surrogate": ("a red \ud800 ball", r"holds \ud800, half of a character"),
    "long": ("x" * 1_000_000, "has 1000000 characters, more than data.max_query_chars=2000"),
    "tokens": ("7 " * 900, "tokens without the clip, more than data.max_prompt_tokens=1000"),
    "placeholder": (f"a {VIDEO_TOKEN} b", f"holds '{VIDEO_TOKEN}', which marks the clip"),
}


@pytest.fixture
def with_bad_query(tmp_path, tiny_world, make_data):
    """A function that makes a data module whose first query is unusable."""

    def make(query, **changes):
        entries = json.loads((tiny_world / "train.json").read_text())
        next(iter(entries.values()))["sentences"][0] = query
        (tmp_path / "bad.json").write_text(json.dumps(entries))
        files = {f"{split}_file": str(tmp_path / "bad.json") for split in ("train", "test")}
        limits = {"max_query_chars": 2000, "max_prompt_tokens": 1000}
        return make_data(**{**files, **limits, **changes})

    return make


@pytest.mark.parametrize(("query", "problem"), BAD_QUERIES.values(), ids=BAD_QUERIES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_bad_query_is_refused_before_any_clip_is_loaded(with_bad_query, split, query, problem):
    data = with_bad_query(query, decoder=NoDecoder())
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        data.examples(split)
    assert "bad.json: " in str(caught.value)
    assert "data.on_missing=skip" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(("query", "problem"), BAD_QUERIES.values(), ids=BAD_QUERIES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_bad_query_is_left_out_and_counted(with_bad_query, make_data, split, query, problem):
    whole = make_data().read("train").report.num_queries
    data = with_bad_query(query, on_missing="skip")
    report = data.read(split).report
    assert (report.num_queries, report.num_examples) == (whole, whole - 1)
    assert report.dropped == {UNUSABLE_QUERY: 1}
    ((qid, text),) = report.unusable_queries.items()
    assert problem in text
    assert qid not in [example.qid for example in data.examples(split)]
    counts = data.coverage(split, num_scored=whole - 1)
    assert counts["left_out"] == 1


def with_blanks(data, blanks):
    """Returns the first two examples, with `blanks` appended to the second query."""
    first, second, *_ = data.source.read("train").examples
    return first, replace(second, raw_query=second.query + blanks)


@pytest.mark.parametrize(("blanks", "is_refused"), [("strip", False), ("keep", True)])
def test_query_length_includes_kept_blanks(make_data, blanks, is_refused):
    data = make_data(max_query_chars=2000)
    data.task.query_blanks = blanks
    _, example = with_blanks(data, " " * 3000)
    problem = data.query_problem(example) or ""
    assert ("data.max_query_chars=2000" in problem) is is_refused


def test_kept_blanks_count_as_tokens(make_data):
    data = make_data(max_prompt_tokens=1000)
    data.task.query_blanks = "keep"
    first, example = with_blanks(data, "\u2003 " * 2000)
    assert data.query_problem(first) is None
    assert "data.max_prompt_tokens=1000" in data.query_problem(example)


def test_prompt_that_is_too_long_with_its_clip_is_skipped(with_bad_query, caplog):
    """The text alone is short enough, so the error appears when the clip is loaded."""
    query = "7 " * 100
    fits = with_bad_query(query, max_prompt_tokens=None)
    lengths = [int(n) for b in fits.eval_loader("train") for n in b.attention_mask.sum(1)]
    assert lengths[0] > max(lengths[1:])
    limit = lengths[0] - 1
    refused = with_bad_query(query, max_prompt_tokens=limit, shuffle=False)
    with pytest.raises(ValueError, match=f"data.max_prompt_tokens={limit}"):
        list(refused.train_dataloader())
    data = with_bad_query(query, max_prompt_tokens=limit, shuffle=False, on_missing="skip")
    bad, second = (example.qid for example in data.examples("train")[:2])
    with caplog.at_level(logging.WARNING, logger="tvg"):
        batches = [data.on_before_batch_transfer(b, 0) for b in data.train_dataloader()]
    shown = [example.qid for batch in batches for example in batch.examples]
    assert shown[:2] == [second, second]
    assert len(shown) == len(data.examples("train"))
    (line,) = [r.getMessage() for r in caplog.records if bad in r.getMessage()]
    assert re.search(
        rf"{bad}: the prompt has \d+ tokens, more than data.max_prompt_tokens={limit}", line
    )
    scored = flat(qids(data.eval_loader("train")))
    assert scored == [example.qid for example in data.examples("train")[1:]]


def test_prompt_lengths_are_predicted_exactly(make_data, parts):
    data = make_data()
    for index in range(3):
        sample = data._dataset("train", data.examples("train"), scored=True)[index]
        batch = parts.collator([sample])
        assert torch.equal(parts.collator._grid(sample.clip), batch.video_grid_thw[0])
        num_tokens = int(batch.attention_mask.sum())
        for limit, is_problem in ((num_tokens, False), (num_tokens - 1, True)):
            collator = PromptCollator(
                task=parts.task,
                processor=parts.processor,
                family=parts.family,
                max_prompt_tokens=limit,
            )
            assert (collator.prompt_problem(sample) is not None) == is_problem
