"""Tests that training never ends in the middle of a step of several batches."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from tvg.training.stopping import StoppableModule


class ThreeBatches(StoppableModule):
    """Collects three batches for every optimizer step."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.num_batches = 0

    @property
    def is_between_steps(self):
        return self.num_batches % 3 == 0

    def training_step(self, batch, batch_idx):
        self.num_batches += 1
        if self.is_between_steps:
            self.manual_backward(self.layer(batch).sum())
            self.optimizers().step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopsAt(Callback):
    """Ends training once, at the end of a batch, as the timer of trainer.max_time does."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.batch:
            trainer.should_stop = True


@pytest.mark.parametrize(("batch", "steps"), [(2, 1), (3, 2), (4, 2), (5, 2)])
def test_training_ends_after_the_step_in_progress(tmp_path, batch, steps):
    module = ThreeBatches()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=5,
        callbacks=[StopsAt(batch)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(15, 1), num_workers=0))
    assert trainer.global_step == steps
    assert module.num_batches == 3 * steps
