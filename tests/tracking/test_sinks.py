"""Tests of the step axis of metrics that callbacks log."""

from lightning.pytorch import Trainer

from tvg.training.lightning_internals import num_stepped_batches


def test_callback_metrics_use_lightnings_batch_axis():
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = 3
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 6
    assert trainer.global_step == 6
    assert num_stepped_batches(trainer) == 3
