"""Estimates the length of a run without building its loaders."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer

from tvg.training.datamodule_base import PromptDataModule


def estimated_batches(trainer: Trainer) -> int | float:
    """Returns the estimated number of training batches of the run; infinite if unknown.

    This is Lightning's `estimated_stepping_batches` for the examples that the run starts from. The
    callback `sample_filtering` chooses other examples between epochs. Its runs then have the same
    schedule wherever they are resumed. For them, the number is an upper bound if no later list is
    longer than the first.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, PromptDataModule) or trainer.max_epochs in (None, -1):
        return trainer.estimated_stepping_batches
    epoch: int | float = data.num_first_batches
    limit = trainer.limit_train_batches
    if isinstance(limit, int):
        epoch = min(epoch, limit)
    elif limit is not None:
        epoch = int(epoch * limit)
    most = math.inf if trainer.max_steps == -1 else trainer.max_steps
    return min(epoch * trainer.max_epochs, most)
