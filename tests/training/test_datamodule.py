"""Tests of the data module: reading and repairing splits, and the batches of its loaders."""

import functools
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_policy import SMALL_FRAMES, make_parts, make_rollout
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from tvg.config.entry import user_message
from tvg.data.dataset import uncached
from tvg.data.padding import no_padding
from tvg.data.readers import read_charades
from tvg.data.selection import keep_all
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.training.datamodule import GroundingDataModule
from tvg.training.datamodule_loaders import Envelope
from tvg.training.schedule import warmup_schedule
from tvg.training.sft import SFTModule


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world)


@pytest.fixture
def make_data(tiny_world, parts):
    def make(**changes) -> GroundingDataModule:
        settings = {
            "name": "small",
            "reader": read_charades,
            "world": None,
            "video_dir": str(tiny_world / "videos"),
            "on_missing": "error",
            "annotation_file": None,
            "annotation_split": None,
            "extensions": ["mp4"],
            "cache": uncached,
            "selection": keep_all,
            "padding": no_padding,
            "clip": functools.partial(ClipLoader, sampling=SMALL_FRAMES, timeout_s=None),
            "decoder": DecordDecoder(num_threads=1),
            "batch_size": 4,
            "eval_batch_size": 2,
            "num_workers": 0,
            "shuffle": True,
            "memory_cache": True,
            "use_windows": True,
            "max_prompt_tokens": None,
            "limit_train": None,
            "limit_val": None,
            "limit_test": None,
            "task": parts.task,
            "processor": parts.processor,
            "family": parts.family,
            "seed": 0,
            **{f"{split}_file": str(tiny_world / f"{split}.json") for split in SPLITS},
        }
        return GroundingDataModule(**{**settings, **changes})

    return make


SPLITS = ("train", "val", "test")


@pytest.fixture
def defective(tmp_path, tiny_world):
    """Two valid segments, one of length 0, one after the video's end, one that ends too late."""
    video_id = sorted(path.stem for path in (tiny_world / "videos").iterdir())[0]
    path = tmp_path / "defective.json"
    times = [[1.0, 2.0], [5.0, 5.0], [99.0, 100.0], [2.0, 100.0], [3.0, 4.0]]
    entry = {"duration": 10.0, "timestamps": times, "sentences": ["a ball"] * len(times)}
    path.write_text(json.dumps({video_id: entry}))
    return str(path)


def qids(loader) -> list[list[str]]:
    opened = (batch.batch if isinstance(batch, Envelope) else batch for batch in loader)
    return [[example.qid for example in batch.examples] for batch in opened]


def test_defects_are_repaired_for_training_and_counted(make_data, defective, caplog):
    with caplog.at_level(logging.INFO, logger="tvg"):
        examples = make_data(train_file=defective).examples("train")
    assert [e.qid.rpartition(":")[2] for e in examples] == ["0", "3", "4"]
    assert examples[1].segment == (2.0, 10.0)
    assert "3 examples from 5 queries" in caplog.text
    assert "1 with start >= end, dropped" in caplog.text
    assert "1 starting after the video's end, dropped" in caplog.text
    assert "small, train split" in caplog.text


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_splits_are_not_repaired(make_data, defective, split):
    examples = make_data(**{f"{split}_file": defective}).examples(split)
    assert len(examples) == 5
    assert examples[1].segment == (5.0, 5.0)
    assert examples[3].segment == (2.0, 100.0)


def test_limits_take_the_first_examples(make_data):
    whole = make_data().examples("test")
    assert len(whole) > 3
    assert make_data(limit_test=3, limit_val=1).examples("test") == whole[:3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "data.batch_size: expected at least 1, got 0"),
        ({"eval_batch_size": 0}, "data.eval_batch_size: expected at least 1, got 0"),
        ({"limit_val": 0}, "data.limit_val: expected at least 1, got 0"),
        ({"limit_train": -5}, "data.limit_train: expected at least 1, got -5"),
        ({"num_workers": -1}, "data.num_workers: expected at least 0, got -1"),
    ],
)
def test_invalid_counts_are_refused(make_data, changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_data(**changes)


def test_missing_and_unknown_splits_are_refused(make_data):
    with pytest.raises(ValueError, match=r"^data.val_file: small has no val split$"):
        make_data(val_file=None).examples("val")
    with pytest.raises(ValueError, match=r"^split: expected one of train, val, test, got 'tets'$"):
        make_data().examples("tets")


def test_evaluation_keeps_the_order_of_the_file(make_data):
    data = make_data()
    expected = [e.qid for e in data.examples("test")]
    batches = qids(data.eval_loader("test"))
    assert [qid for batch in batches for qid in batch] == expected
    assert {len(batch) for batch in batches[:-1]} == {2}
    assert qids(data.test_dataloader()) == batches
    assert [q for b in qids(data.val_dataloader()) for q in b] == [
        e.qid for e in data.examples("val")
    ]


def test_eval_loader_skips_finished_examples(make_data):
    data = make_data()
    batches = qids(data.eval_loader("test"))
    for done in range(0, len(batches) + 1):
        assert qids(data.eval_loader("test", skip=2 * done)) == batches[done:]


def test_training_epochs_are_shuffled_and_reproducible(make_data):
    data = make_data()
    loader = data.train_dataloader()
    first, second = qids(loader), qids(loader)
    expected = sorted(e.qid for e in data.examples("train"))
    assert sorted(q for batch in first for q in batch) == expected
    assert sorted(q for batch in second for q in batch) == expected
    assert first != second
    assert {len(batch) for batch in first[:-1]} == {4}
    assert len(loader) == len(first)
    assert qids(make_data().train_dataloader()) == first
    assert qids(make_data(seed=1).train_dataloader()) != first


def test_ranks_share_the_examples(make_data):
    seen, evaluated = [], []
    for rank in range(2):
        data = make_data(shuffle=False)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        seen.append([q for batch in qids(data.train_dataloader()) for q in batch])
        evaluated.append([q for batch in qids(data.val_dataloader()) for q in batch])
    for split, shares in (("train", seen), ("val", evaluated)):
        assert len(shares[0]) == len(shares[1])
        everything = {e.qid for e in data.examples(split)}
        assert set(shares[0]) | set(shares[1]) == everything
        assert len(shares[0]) + len(shares[1]) - len(everything) in (0, 1)


def test_prepare_data_generates_the_synthetic_world(make_data):
    calls = []
    data = make_data(world=lambda: calls.append("generated"))
    assert calls == []
    data.prepare_data()
    assert calls == ["generated"]
    make_data().prepare_data()


def test_missing_video_gives_the_same_error_in_workers(make_data, tmp_path):
    data = make_data()
    dataset = data._dataset("test", data.examples("test"), scored=False)
    path = tmp_path / "gone.mp4"
    object.__setattr__(dataset.examples[0], "video_path", path)
    expected = f"{path}: no such file; expected a video file"
    for num_workers in (0, 1):
        context = {"multiprocessing_context": "fork"} if num_workers else {}
        loader = DataLoader(
            dataset, batch_size=2, collate_fn=list, num_workers=num_workers, **context
        )
        with pytest.raises(Exception, match="no such file") as caught:
            next(iter(loader))
        assert user_message(caught.value) == expected


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_frame_rates_are_not_rounded_to_the_training_precision(
    tiny_checkpoint, tiny_world, make_data, precision, tmp_path
):
    seen = []

    class Looking(SFTModule):
        def training_step(self, batch, batch_idx):
            seen.append(batch)
            return super().training_step(batch, batch_idx)

    parts = make_parts(tiny_checkpoint, tiny_world)
    module = Looking(
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        task=parts.task,
        rollout=make_rollout(),
        micro_batch_size=2,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        schedule=functools.partial(warmup_schedule, name="constant", warmup_steps=0),
        max_grad_norm=None,
        max_skipped_steps=5,
        component_lr={},
        seed=0,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=make_data())
    (batch,) = seen
    rates = [parts.dataset.loader.load(e.video_path).sampled_fps for e in batch.examples]
    assert batch.sampled_fps.tolist() == rates
