"""Tests of the training list: replaced between epochs, saved in and restored from checkpoints."""

import itertools
import re
from dataclasses import replace

import pytest
import torch

from tvg.data.order import BatchOrder, ResumableLoader
from tvg.training.training_list import TrainingList
from tvg.types import GroundingExample, Segment

FIRST = [
    GroundingExample(
        qid=f"v:{n}", video="v", video_path=None, query="q", segment=Segment(0, 1), duration_s=9.0
    )
    for n in range(7)
]


def loader_of(training, *, seed=0):
    order = BatchOrder(
        num_examples=len(training.examples),
        batch_size=2,
        shuffle=True,
        seed=seed,
        rank=0,
        world_size=1,
    )
    ids = [example.qid for example in training.examples]
    return training.at_its_place(ResumableLoader(ids, order=order, collate_fn=list))


def chosen(num):
    return [
        replace(example, difficulty=10.0 * n, prediction=None if n else Segment(0.5, 2.0))
        for n, example in enumerate(FIRST[:num])
    ]


def test_new_list_is_used_from_the_next_epoch():
    training = TrainingList(lambda: FIRST)
    loader = loader_of(training)
    assert training.examples is FIRST
    assert sorted(itertools.chain(*loader)) == [e.qid for e in FIRST]
    assert (training.epochs_done, training.is_between_epochs) == (1, True)
    training.replace(chosen(3))
    assert training.examples == chosen(3)
    assert training.epochs_done == 1
    loader = loader_of(training)
    assert loader.epoch == 1  # shuffled as the second epoch, not again as the first
    assert sorted(itertools.chain(*loader)) == ["v:0", "v:1", "v:2"]
    assert training.epochs_done == 2


@pytest.mark.parametrize("num_seen", range(3))
def test_restored_list_continues_at_the_same_batch(num_seen, tmp_path):
    training = TrainingList(lambda: FIRST)
    list(loader_of(training))
    training.replace(chosen(5))
    loader = loader_of(training)
    batches = iter(loader)
    [next(batches) for _ in range(num_seen)]
    torch.save(training.state_dict(), tmp_path / "state")
    rest = [*batches]
    other = TrainingList(lambda: FIRST)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.examples == chosen(5)
    assert (other.epochs_done, other.is_between_epochs) == (1, num_seen == 0)
    assert list(loader_of(other)) == rest


def test_list_cannot_be_replaced_within_an_epoch():
    training = TrainingList(lambda: FIRST)
    next(iter(loader_of(training)))
    with pytest.raises(ValueError, match="between two epochs: 1 batches of this epoch are done"):
        training.replace(chosen(3))
    with pytest.raises(ValueError, match="cannot be empty"):
        training.replace([])


def test_restored_list_with_missing_examples_is_refused():
    training = TrainingList(lambda: FIRST)
    training.replace(chosen(5))
    other = TrainingList(lambda: FIRST[1:])
    message = (
        "data (its files, selection, limit_train): 1 of the 5 training examples of the resumed run "
        "are missing, e.g. 'v:0'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        other.load_state_dict(training.state_dict())


def test_restored_list_with_another_seed_is_refused():
    training = TrainingList(lambda: FIRST)
    loader_of(training)
    other = TrainingList(lambda: FIRST)
    other.load_state_dict(training.state_dict())
    with pytest.raises(ValueError, match=r"^seed: the run that is resumed had seed=0, got 1"):
        loader_of(other, seed=1)
