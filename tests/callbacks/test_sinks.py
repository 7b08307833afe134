"""Where numbers of callbacks stand in the loggers."""

from lightning.pytorch import Trainer

from tvg.callbacks.sinks import logging_step


def test_the_axis_counts_batches_as_lightnings_own_metrics_do():
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = 3
    loop.manual_optimization.optim_step_progress.total.completed = 6  # two updates a batch
    assert trainer.global_step == 6
    assert logging_step(trainer) == 3
