"""The length of a run, computed without building its loaders."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer

from tvg.training.datamodule_base import PromptDataModule


def estimated_batches(trainer: Trainer) -> int | float:
    """Returns the estimated number of training batches of the run; infinite if unknown.

    Like Lightning's `estimated_stepping_batches`, but based on the examples that the run starts
    from. A run whose list is chosen anew between epochs (`sample_filtering`) then gets the same
    schedule wherever it is resumed. For such a run the number is an upper bound, provided that no
    later list is longer than the first.
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
