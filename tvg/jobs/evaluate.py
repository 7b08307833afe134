"""Evaluates a checkpoint: predictions and metrics on one split of a data set."""

from __future__ import annotations

import hashlib
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from tvg.build import RunComponents, build_all, build_components
from tvg.callbacks.run_record import package_versions, source_revision
from tvg.config.run_folder import RunFolder, claimed
from tvg.core.interruption import advising
from tvg.core.text_files import output_folder_check, write_json, write_text
from tvg.core.writing import remove_leftovers_of_run
from tvg.data.annotation_writer import annotation_text, format_of
from tvg.data.annotations import MixedSets
from tvg.report.metrics_table import print_metrics
from tvg.task.predictions import Prediction, write_predictions
from tvg.tracking.evaluation_log import log_evaluation
from tvg.tracking.steady import steady
from tvg.training.evaluation import (
    PartialPredictions,
    choose_device,
    predict_all,
    with_difficulty,
)
from tvg.training.evaluation_ranks import EvaluationRank, evaluation_rank
from tvg.training.quiet_logs import quiet_libraries
from tvg.training.trained_state import fingerprint

CONFIG_FILE = "config.yaml"
PREDICTIONS_FILE = "predictions.jsonl"
log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Writes `predictions.jsonl` and `metrics.json` under `run_dir`; returns the metrics.

    To resume a stopped evaluation, run the same command with the same `run_dir`. Processes that
    torchrun starts share the queries; the first one writes the files and returns the metrics.
    """
    quiet_libraries()
    with claimed(cfg, "evaluate") as folder, evaluation_rank() as rank:
        return _evaluate(cfg, folder, rank)


def _evaluate(cfg: DictConfig, folder: RunFolder, rank: EvaluationRank) -> dict[str, Any]:
    run_dir = folder.path
    device = rank.device(choose_device(cfg.device))
    _use_gpu_dtype(cfg, device)
    difficulty_file = _difficulty_file(cfg)
    with rank.first_alone():
        parts = build_components(cfg, split=cfg.split)
    if difficulty_file is not None and isinstance(parts.data.source, MixedSets):
        raise ValueError(
            "evaluate.write_difficulty: a file can contain only one data set, but "
            f"data={cfg.data.name} is a mixture: evaluate each of its sets"
        )
    if difficulty_file is not None and cfg.split != "train":
        log.warning(
            "evaluate.write_difficulty: rates the %s split; use split=train to rate training data",
            cfg.split,
        )
    folder.begin()
    if rank.is_first:
        remove_leftovers_of_run(run_dir)
    with advising("predictions so far are kept: run the same command to continue"):
        partial = _partial(cfg, parts, folder, device, rank)
        _predict(cfg, parts, partial, device, rank)
        predictions = [p for batch in rank.gather(partial.batches) for p in batch]
    metrics = _write(cfg, parts, run_dir, predictions, difficulty_file) if rank.is_first else {}
    rank.wait_for_all()
    partial.remove()
    if rank.is_first:  # of interrupted evaluations by another number of processes
        for file in run_dir.glob("predictions.*partial.jsonl"):
            file.unlink(missing_ok=True)
    return metrics


def _use_gpu_dtype(cfg: DictConfig, device: torch.device) -> None:
    """Loads float32 weights in the precision of `evaluate.gpu_dtype` on a GPU."""
    dtype = cfg.evaluate.gpu_dtype
    if device.type == "cuda" and dtype is not None and cfg.model.dtype == "float32":
        log.info("evaluate.gpu_dtype: the weights are loaded in %s", dtype)
        cfg.model.dtype = dtype


def _write(
    cfg: DictConfig,
    parts: RunComponents,
    run_dir: Path,
    predictions: list[Prediction],
    difficulty_file: Path | None,
) -> dict[str, Any]:
    """Writes and logs predictions and metrics; returns the metrics."""
    metrics = {
        "dataset": parts.data.name,
        "split": cfg.split,
        "model": cfg.model.path,
        **parts.data.coverage(cfg.split, num_scored=len(predictions)),
        **parts.task.metrics(predictions, seed=cfg.seed, strict=cfg.evaluate.strict_recall),
    }
    write_predictions(run_dir / PREDICTIONS_FILE, predictions)
    if difficulty_file is not None:
        scored = with_difficulty(parts.data.examples(cfg.split), predictions, parts.task)
        write_text(difficulty_file, annotation_text(difficulty_file, scored))
        log.info("wrote %s", difficulty_file)
    write_json(run_dir / "metrics.json", metrics)
    write_text(run_dir / CONFIG_FILE, OmegaConf.to_yaml(cfg, resolve=True))
    write_json(run_dir / "run.json", {"source": source_revision(), "versions": package_versions()})
    files = [
        run_dir / CONFIG_FILE,
        run_dir / "run.json",
        run_dir / "metrics.json",
        run_dir / PREDICTIONS_FILE,
    ]
    # Raises an error if a logger's store cannot be opened. The same command, run again, then only
    # has to log.
    loggers = steady(build_all(cfg.get("logger")))
    log_evaluation(loggers, metrics, files=files, prefix=f"{cfg.split}")
    print_metrics({str(cfg.model.path): metrics}, title=f"{parts.data.name}, {cfg.split} split")
    log.info("wrote %s", run_dir / "metrics.json")
    return metrics


def _difficulty_file(cfg: DictConfig) -> Path | None:
    """Returns the file for difficulties after checking that it can be written."""
    if cfg.evaluate.write_difficulty is None:
        return None
    path = Path(cfg.evaluate.write_difficulty)
    try:
        format_of(path)
        output_folder_check(path.parent)
    except ValueError as error:
        raise ValueError(f"evaluate.write_difficulty: {error}") from error
    return path


def _partial(
    cfg: DictConfig,
    parts: RunComponents,
    folder: RunFolder,
    device: torch.device,
    rank: EvaluationRank,
) -> PartialPredictions:
    """Returns the predictions of an earlier, interrupted run of the same evaluation."""
    # The digest includes the examples, because an annotation file can change under the same name.
    examples = parts.data.examples(cfg.split)
    told = repr(
        [
            (e.qid, e.raw_query or e.query, e.segment, e.window, e.lead_in, sorted(e.extra.items()))
            for e in examples
        ]
    )
    digest = hashlib.sha256((folder.identity.digest + told).encode()).hexdigest()[:16]
    decides = fingerprint(parts.policy.to(device)) + digest
    return PartialPredictions(folder.path / rank.partial_file(), decides)


def _predict(
    cfg: DictConfig,
    parts: RunComponents,
    partial: PartialPredictions,
    device: torch.device,
    rank: EvaluationRank,
) -> None:
    """Predicts the batches of this process that `partial` does not contain yet."""
    num_queries = -(-len(parts.data.examples(cfg.split)) // rank.world_size)
    num_done = min(partial.num_batches * parts.data.eval_batch_size, num_queries)
    if num_done:
        log.info("resuming after %d of %d queries", num_done, num_queries)
    progress = tqdm(
        total=num_queries,
        initial=num_done,
        unit="query",
        desc="evaluate",
        disable=not rank.is_first,
    )
    with closing(parts.rollout), progress as bar:
        parts.rollout.setup(policy=parts.policy.to(device), tokenizer=parts.processor.tokenizer)
        predict_all(
            task=parts.task,
            rollout=parts.rollout.greedy() if cfg.greedy else parts.rollout,
            batches=parts.data.eval_loader(cfg.split, share=rank.share(partial.num_batches)),
            seed=cfg.seed,
            device=device,
            partial=partial,
            on_batch=bar.update,
        )
