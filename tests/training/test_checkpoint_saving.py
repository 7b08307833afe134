"""Tests when checkpoints are saved, in the training loop and in a background thread."""

import threading
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from tvg.training.checkpoint import AtomicCheckpointIO
from tvg.training.checkpoint_background import BackgroundCheckpointIO, host_copy
from tvg.training.checkpoint_folder import BEST, LAST, checkpoint_name, step_of
from tvg.training.checkpoint_saving import SaveCheckpoints, checkpoint_io, save_last


class Small(pl.LightningModule):
    """Trains one weight; validation `n` logs the n-th value of `scores`."""

    def __init__(self, scores=(), updates=1):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.scores = list(scores)
        self.updates = updates

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, _):
        for _ in range(self.updates):
            self.optimizers().zero_grad()
            self.manual_backward((self.weight * batch).sum())
            self.optimizers().step()

    def validation_step(self, *_):
        pass

    def on_validation_epoch_end(self):
        self.log("val/score", self.scores.pop(0))


def callback(folder, **settings):
    defaults = {
        "every_n_train_steps": 2,
        "keep_last": 2,
        "keep_best": None,
        "mode": "max",
        "asynchronous": False,
    }
    return SaveCheckpoints(dirpath=folder, **{**defaults, **settings})


def fit(saving, module, *, steps, every=1, resume=None):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        callbacks=[saving],
        plugins=[checkpoint_io([saving])],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        limit_val_batches=1 if module.scores else 0,
    )
    data = DataLoader(torch.ones(100, 3), batch_size=1)
    trainer.fit(module, data, DataLoader(torch.ones(1, 3)), ckpt_path=resume, weights_only=True)
    return trainer


def kept(folder):
    return sorted(step_of(path) for path in folder.glob("step_*"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_nth_step_is_saved_and_the_last_k_are_kept(folder, asynchronous):
    trainer = fit(callback(folder, asynchronous=asynchronous), Small(), steps=7)
    assert kept(folder) == [4, 6]
    save_last(trainer, folder)
    assert kept(folder) == [6, 7]
    assert step_of(folder / LAST) == 7


def test_batches_with_several_updates_are_saved(folder):
    fit(callback(folder, every_n_train_steps=5, keep_last=9), Small(updates=3), steps=18)
    assert kept(folder) == [6, 12, 15]


@pytest.mark.parametrize(("mode", "best"), [("max", 4), ("min", 3)])
def test_best_step_is_kept(folder, mode, best):
    scores = [float("nan"), 0.5, 0.1, 0.9, 0.9, 0.2]
    saving = callback(folder, keep_best="val/score", mode=mode, every_n_train_steps=5)
    fit(saving, Small(scores), steps=6)
    assert kept(folder) == sorted({best, 5})
    assert step_of(folder / BEST) == best
    state = torch.load(folder / BEST, weights_only=True)
    assert state["global_step"] == best
    assert torch.allclose(state["state_dict"]["weight"], torch.full((3,), -0.1 * best))


def test_saved_step_is_not_written_again_if_it_is_the_best(folder, monkeypatch):
    written = []
    save = AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(
        AtomicCheckpointIO,
        "save_checkpoint",
        lambda self, state, path, **_: written.append(Path(path).name) or save(self, state, path),
    )
    fit(callback(folder, keep_best="val/score"), Small([0.1, 0.2, 0.3]), steps=6, every=2)
    assert written == [checkpoint_name(step) for step in (2, 4, 6)]
    assert step_of(folder / BEST) == 6


def test_resumed_run_knows_the_best_value(folder):
    best = {"keep_best": "val/score", "every_n_train_steps": 4}
    fit(callback(folder, **best), Small([0.1, 0.9, 0.3, 0.2]), steps=4)
    again = callback(folder, **best)
    fit(again, Small([0.5, 0.6]), steps=6, resume=folder / LAST)
    assert (again.best_value, again.best_step) == (pytest.approx(0.9), 2)
    assert step_of(folder / BEST) == 2


def test_run_resumes_from_its_best_checkpoint(folder):
    best = {"keep_best": "val/score", "every_n_train_steps": 4}
    scores = [0.1, 0.9, 0.3, 0.2, 0.1]
    fit(callback(folder, **best), Small(scores), steps=5)
    module = Small(scores[2:])
    trainer = fit(callback(folder, **best), module, steps=5, resume=folder / BEST)
    assert trainer.global_step == 5
    assert module.scores == []
    assert torch.allclose(module.weight, torch.full((3,), -0.5))


def test_metric_that_is_not_logged_is_an_error(folder):
    saving = callback(folder, keep_best="val/miou")
    with pytest.raises(ValueError, match=r"keep_best: val/miou is not logged .*val/score"):
        fit(saving, Small([0.1]), steps=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_train_steps": 0}, "every_n_train_steps: expected at least 1, got 0"),
        ({"keep_last": 0}, "keep_last: expected at least 1, got 0"),
        ({"mode": "best"}, "mode: expected max or min, got 'best'"),
    ],
)
def test_setting_out_of_range_is_named(folder, settings, message):
    with pytest.raises(ValueError, match=rf"^callbacks\.checkpoint\.{message}"):
        callback(folder, **settings)


def test_failed_save_keeps_the_former_checkpoints(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    saving = callback(folder, keep_last=1)
    trainer = fit(saving, Small(), steps=2)
    monkeypatch.setattr("tvg.training.checkpoint_file.ChecksumWriter.finish", full)
    trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed += 1
    with pytest.warns(UserWarning, match="the previous checkpoint is kept"):
        saving.save(trainer)
    assert kept(folder) == [2]
    with (
        pytest.warns(UserWarning, match="no checkpoint was saved"),
        pytest.raises(OSError, match="free disk space, then continue"),
    ):
        save_last(trainer, folder)


# -- in the background ------------------------------------------------------------------------

STATE = {
    "state_dict": {"weight": torch.arange(6.0), "tied": None},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2, 3)}}, "ids": [0, 1]}],
    "pair": (1, torch.tensor(2)),
}
STATE["state_dict"]["tied"] = STATE["state_dict"]["weight"].view(2, 3)


def test_background_file_equals_the_foreground_file(tmp_path):
    foreground, background = AtomicCheckpointIO(), BackgroundCheckpointIO()
    foreground.save_checkpoint(STATE, tmp_path / "a" / "x.ckpt")
    background.save_checkpoint(STATE, tmp_path / "b" / "x.ckpt")
    background.wait()
    assert (tmp_path / "a" / "x.ckpt").read_bytes() == (tmp_path / "b" / "x.ckpt").read_bytes()


def test_copy_shares_memory_where_the_original_does():
    copy = host_copy(STATE)
    weight, tied = copy["state_dict"]["weight"], copy["state_dict"]["tied"]
    weight.add_(1)
    assert torch.equal(tied.flatten(), weight)
    assert torch.equal(STATE["state_dict"]["weight"], torch.arange(6.0))


class Gate:
    """Blocks writers until it is opened, and counts them."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        self.has_begun = threading.Event()
        self.writers = self.most = 0
        save = AtomicCheckpointIO.save_checkpoint

        def gated(io, *arguments):
            self.writers += 1
            self.most = max(self.most, self.writers)
            self.has_begun.set()
            assert self.open.wait(20)
            save(io, *arguments)
            self.writers -= 1

        monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", gated)


def test_training_continues_while_a_copy_is_written(tmp_path, monkeypatch):
    gate, io, path = Gate(monkeypatch), BackgroundCheckpointIO(), tmp_path / "x.ckpt"
    weight = torch.zeros(3)
    tidied = []
    io.save_checkpoint({"weight": weight}, path)
    io.after_save(lambda: tidied.append(path.exists()))
    assert gate.has_begun.wait(20)
    weight.add_(1)
    assert not path.exists()
    assert tidied == []
    gate.open.set()
    io.wait()
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.zeros(3))
    assert tidied == [True]


def test_two_saves_never_write_together(tmp_path, monkeypatch):
    gate, io = Gate(monkeypatch), BackgroundCheckpointIO()
    io.save_checkpoint({"n": 1}, tmp_path / "1.ckpt")
    threading.Timer(0.2, gate.open.set).start()
    io.save_checkpoint({"n": 2}, tmp_path / "2.ckpt")
    assert (tmp_path / "1.ckpt").exists()  # the second save has waited
    io.teardown()
    assert gate.most == 1
    assert (tmp_path / "2.ckpt").exists()


@pytest.mark.filterwarnings("ignore:no checkpoint was saved")
def test_disk_error_of_the_background_is_kept_and_nothing_is_removed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tvg.training.checkpoint_file.ChecksumWriter.finish", full)
    io, tidied = BackgroundCheckpointIO(), []
    io.save_checkpoint({"n": 1}, tmp_path / "1.ckpt")
    io.after_save(lambda: tidied.append(1))
    io.wait()
    assert io.failure is not None
    assert tidied == []


def test_bug_in_the_background_is_raised(tmp_path):
    io = BackgroundCheckpointIO()
    io.save_checkpoint({"n": lambda: None}, tmp_path / "1.ckpt")
    with pytest.raises(AttributeError, match="lambda"):
        io.wait()
