"""Fixtures for tests of callbacks and loggers: a finished tiny run, and a `fit` function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.tiny_policy import with_rows
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

from tvg.callbacks.progress import Progress
from tvg.callbacks.rollout_table import RolloutTable
from tvg.callbacks.run_record import RunRecord
from tvg.callbacks.throughput import Throughput
from tvg.callbacks.timelines import Timelines
from tvg.task.predictions import Prediction
from tvg.tracking.mlflow_logger import make_mlflow_logger
from tvg.types import Segment

CONFIG_YAML = "seed: 7\nmodel:\n  path: /models/a$b@c\n"
METRICS = {"reward": "train/reward/total", "loss": "train/loss"}


class TinyGRPO(pl.LightningModule):
    """A module with one weight that returns the outputs and metrics of a GRPO step."""

    def __init__(self, *, updates_per_batch: int = 1, extras: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.updates_per_batch = updates_per_batch
        self.extras = extras
        self.val_predictions: list[Prediction] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, Any]:
        for _ in range(self.updates_per_batch):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = (self.weight - 1).square().sum()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train/reward/total", 0.25)
        self.log("train/loss", loss)
        self.log("train/global_step", float(self.global_step))
        if self.extras is not None:
            return self.extras
        rows = [
            {
                "qid": f"v:{n}",
                "query": "who <opens> | the $door",
                "truth": [1.0, 7.5],
                "segment": [2.0, 9.44] if n else None,
                "rewards": {"iou": torch.tensor(0.5), "format": float("nan")},
                "total": 0.5 + n,
                "text": "<answer>2.0 to\n9.44</answer>\ud800",
            }
            for n in range(4)
        ]
        return with_rows(rows)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        if batch_idx == 0:
            self.val_predictions = []
        self.log("val/miou", 0.5)
        prediction = Prediction(
            qid=f"v:{batch_idx}",
            video="v",
            query="who opens the door",
            segment=None if batch_idx else Segment(2.0, 9.0),
            truth=Segment(1.0, 7.5),
            score=0.0,
            text="",
            duration_s=20.0,
            is_parsed=not batch_idx,
        )
        self.val_predictions.append(prediction)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(module: pl.LightningModule, *, resume: str | None = None, **settings: Any) -> pl.Trainer:
    """Fits a module on one CPU process, six batches per epoch; everything optional is off."""
    arguments: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": [],
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    } | settings
    callbacks = arguments.get("callbacks", [])
    has_bar = any(isinstance(callback, Progress) for callback in callbacks)
    trainer = pl.Trainer(enable_progress_bar=has_bar, **arguments)
    train = torch.utils.data.DataLoader(torch.zeros(6, 1), batch_size=1)
    val = torch.utils.data.DataLoader(torch.zeros(2, 1), batch_size=1)
    trainer.fit(module, train, val, ckpt_path=resume)
    return trainer


@pytest.fixture(scope="session")
def fit() -> Callable[..., pl.Trainer]:
    return _fit


@pytest.fixture(scope="session")
def tiny_grpo() -> type[TinyGRPO]:
    return TinyGRPO


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the tracking URI of an MLflow store; its path contains special characters."""
    return f"sqlite:///{tmp_path_factory.mktemp('a store #1 50%')}/mlflow.db"


@dataclass
class Run:
    """A finished run and where its files are."""

    run_dir: Path
    trainer: pl.Trainer
    client: Any
    run_id: str
    artifacts: Path
    printed: str


@pytest.fixture(scope="session")
def finished_run(store: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fits two epochs of six steps, with all loggers and five callbacks.

    A validation follows each epoch.
    """
    import contextlib
    import io

    run_dir = tmp_path_factory.mktemp("run")
    logger = make_mlflow_logger(
        tracking_uri=store, experiment_name="all on", run_name="tiny", run_dir=run_dir
    )
    assert isinstance(logger, MLFlowLogger)
    loggers = [logger, TensorBoardLogger(run_dir, name="tb", version=""), CSVLogger(run_dir, "csv")]
    callbacks = [
        RunRecord(run_dir=run_dir, config_yaml=CONFIG_YAML, summary={"task": "g" * 400, "lr": 0.1}),
        RolloutTable(run_dir=run_dir, every_n_steps=5, max_rows=3),
        Timelines(run_dir=run_dir, num_queries=12),
        Throughput(peak_tflops=None),
        Progress(metrics=METRICS, every_n_steps=4, style="lines"),
    ]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trainer = _fit(
            TinyGRPO(),
            logger=loggers,
            callbacks=callbacks,
            max_epochs=2,
            num_sanity_val_steps=1,
            default_root_dir=run_dir,
        )
    assert logger.run_id is not None
    client = logger.experiment
    uri = client.get_run(logger.run_id).info.artifact_uri
    from urllib.parse import unquote, urlparse

    artifacts = Path(unquote(urlparse(uri).path))
    return Run(run_dir, trainer, client, logger.run_id, artifacts, printed.getvalue())
