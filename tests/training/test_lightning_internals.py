"""Tests of the functions that use private members of Lightning."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from tvg.training.lightning_internals import (
    forget_logged,
    forget_train_loader,
    num_stepped_batches,
    step_metrics,
    validation_is_due,
)


class Small(LightningModule):
    """Logs `x` for its first batch only and counts the calls of `train_dataloader`."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.num_loaders = 0

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.log("x", 5.0)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        self.num_loaders += 1
        return torch.utils.data.DataLoader(torch.ones(4, 1))

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(1, 1))


class Logger(DummyLogger):
    def __init__(self):
        super().__init__()
        self.steps = []

    def log_metrics(self, metrics, step):
        if "x" in metrics:
            self.steps.append(step)


@pytest.fixture
def fit(tmp_path):
    def run(callback, **options):
        module, logger = Small(), Logger()
        trainer = Trainer(
            accelerator="cpu",
            logger=logger,
            log_every_n_steps=1,
            callbacks=[callback],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            **options,
        )
        trainer.fit(module)
        return module, trainer, logger

    return run


class After(Callback):
    """Calls a function after every batch and stores its return values."""

    def __init__(self, function):
        self.function, self.found = function, []

    def on_train_batch_end(self, trainer, *_):
        self.found.append(self.function(trainer))


class ForgetLoader(Callback):
    def on_train_epoch_end(self, trainer, *_):
        forget_train_loader(trainer)


def test_stepped_batches_are_counted(fit):
    _, trainer, _ = fit(Callback(), max_steps=3)
    assert num_stepped_batches(trainer) == 3


def test_forgotten_loader_is_created_again(fit):
    assert fit(Callback(), max_epochs=2)[0].num_loaders == 1
    assert fit(ForgetLoader(), max_epochs=2)[0].num_loaders == 2


def test_step_metrics_are_those_about_to_be_logged(fit):
    after = After(step_metrics)
    fit(after, max_steps=1)
    assert after.found == [{"x": 5.0, "epoch": 0.0}]


def test_validation_is_due_after_each_second_batch(fit):
    after = After(validation_is_due)
    fit(after, max_steps=4, val_check_interval=2)
    assert after.found == [False, True, False, True]


def test_forgotten_metrics_are_not_logged_again(fit):
    class Forget(Callback):
        def on_train_batch_start(self, trainer, *_):
            forget_logged(trainer)

    # Without `forget_logged`, the value is logged again at each step.
    assert fit(Callback(), max_steps=3)[2].steps == [0, 1, 2]
    assert fit(Forget(), max_steps=3)[2].steps == [0]
