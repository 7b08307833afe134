"""Tests of rescoring on several ranks: a signal to one rank stops all after the same batch."""

import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_policy import make_rollout

from tvg.core import interruption
from tvg.core.interruption import Interrupted
from tvg.model.sharding import ShardedModule
from tvg.training import rescoring
from tvg.training.rescoring import Rescoring


class Ranks:
    """The collectives of a trainer on two ranks, seen from rank 0."""

    root_device = torch.device("cpu")

    def __init__(self, *, batches_elsewhere, stop_after=None):
        self.batches_elsewhere, self.stop_after = batches_elsewhere, stop_after
        self.decisions = 0

    def all_gather(self, value):
        return torch.stack([value, torch.full_like(value, self.batches_elsewhere)])

    def reduce_boolean_decision(self, is_true, *, all):
        assert not all
        self.decisions += 1
        return is_true or self.decisions == self.stop_after


class Weights(ShardedModule):
    """A policy whose weights can be fingerprinted."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)


@pytest.fixture(autouse=True)
def no_signal():
    yield
    interruption._state.__init__()


@pytest.fixture
def rescore(monkeypatch, tmp_path):
    def run(ranks, *, num_batches, during_batch=lambda: None):
        done = []

        def predict_all(*, batches, on_batch, **_):
            for batch in batches:
                done.append(batch)
                during_batch()
                on_batch(1)
            return []

        monkeypatch.setattr(rescoring, "predict_all", predict_all)
        monkeypatch.setattr(Rescoring, "_of_all_ranks", lambda self, mine: mine)
        trainer = SimpleNamespace(
            world_size=2,
            global_rank=0,
            is_global_zero=True,
            strategy=ranks,
            precision_plugin=SimpleNamespace(val_step_context=nullcontext),
        )
        module = SimpleNamespace(
            policy=Weights(),
            tokenizer=None,
            rollout=make_rollout(),
            task=None,
            seed=0,
            device=torch.device("cpu"),
        )
        data = SimpleNamespace(
            eval_batch_size=1,
            eval_batch_tokens=None,
            scoring_loader=lambda *_, **__: list(range(num_batches)),
        )
        pass_ = Rescoring(
            trainer=trainer,
            module=module,
            data=data,
            max_new_tokens=None,
            folder=tmp_path,
            name="round_0",
        )
        try:
            pass_.run([])
        finally:
            run.done = done
        return done

    return run


def test_signal_on_another_rank_stops_this_rank_too(rescore):
    with pytest.raises(Interrupted):
        rescore(Ranks(batches_elsewhere=4, stop_after=2), num_batches=4)
    assert rescore.done == [0, 1]


def test_own_signal_is_shared_before_it_stops_this_rank(rescore):
    ranks = Ranks(batches_elsewhere=4)
    with pytest.raises(Interrupted, match="SIGTERM"):
        rescore(ranks, num_batches=4, during_batch=lambda: interruption.ask(signal.SIGTERM))
    assert ranks.decisions == 1


def test_rank_with_fewer_batches_decides_as_often_as_others(rescore):
    ranks = Ranks(batches_elsewhere=5)
    rescore(ranks, num_batches=2)  # this rank did more before the kill, so it has fewer left
    assert ranks.decisions == 5


def test_signal_reaches_a_rank_that_is_already_done(rescore):
    with pytest.raises(Interrupted):
        rescore(Ranks(batches_elsewhere=5, stop_after=4), num_batches=2)
