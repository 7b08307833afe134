"""Computes predictions for validation, `tvg-evaluate`, `tvg-predict` and sample filtering."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from tvg.core.writing import disk_errors
from tvg.data.readers.record import ReadReport
from tvg.data.readers.rules import VIDEO_MISSING
from tvg.data.split_batches import SplitBatch, parts_of
from tvg.rollout.engine import RolloutEngine, awake
from tvg.task.predictions import Prediction, prediction_of
from tvg.task.protocol import Task
from tvg.types import GroundingExample, PromptBatch

Counts = dict[str, int]


def predict_batch(
    *,
    task: Task,
    rollout: RolloutEngine,
    prompts: PromptBatch | SplitBatch,
    seed: int,
    device: torch.device,
) -> list[Prediction]:
    """Returns one prediction per prompt; an unparseable completion scores 0.

    The prompts are moved to the device first; the parts of a split batch one after the other.
    """
    return [
        prediction
        for part in parts_of(prompts)
        for prediction in _predict_batch(task, rollout, part.to(device), seed)
    ]


def _predict_batch(
    task: Task, rollout: RolloutEngine, prompts: PromptBatch, seed: int
) -> list[Prediction]:
    if len(prompts) == 0:  # no clip of the batch could be read
        return []
    sampled = rollout.generate(prompts, group_size=1, seed=seed)
    durations_s = prompts.duration_s.tolist()
    return [
        task.predict(example, text, duration_s=duration_s)
        for example, text, duration_s in zip(
            prompts.examples, sampled.texts, durations_s, strict=True
        )
    ]


def choose_device(name: str | None) -> torch.device:
    """Returns the named device; None: CUDA if available, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises these for missing devices
        first = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected a device such as cpu or cuda:0, got {name!r}: {first}"
        ) from error
    return device


def with_difficulty(
    examples: Sequence[GroundingExample], predictions: Iterable[Prediction], task: Task
) -> list[GroundingExample]:
    """Returns the examples with difficulties computed from their predictions; see `Task.rate`.

    Examples without a prediction (unreadable clips) are not changed.

    Args:
        examples: the examples to rate.
        predictions: predictions of the examples, in any order.
        task: rates a prediction.

    Raises:
        ValueError: the true segment of a query is unknown.
    """
    found = {prediction.qid: prediction for prediction in predictions}
    return [task.rate(e, found[e.qid]) if e.qid in found else e for e in examples]


def coverage(report: ReadReport, *, num_usable: int, num_asked: int, num_scored: int) -> Counts:
    """Counts the queries of a file, and the queries that are not scored, by reason.

    If no example is repeated, queries == scored + left_out + beyond_limit.

    Args:
        report: report of reading the file.
        num_usable: examples left after reading.
        num_asked: examples left after `data.limit_*`.
        num_scored: examples whose clip could be read.
    """
    unreadable = num_asked - num_scored
    return {
        "queries": report.num_queries,
        "missing": report.dropped.get(VIDEO_MISSING, 0),  # the video has no file
        "unreadable": unreadable,
        "left_out": sum(report.dropped.values()) + unreadable,  # for any reason
        "beyond_limit": num_usable - num_asked,
    }


class PartialPredictions:
    """Saves the predictions so far to a file, so that an interrupted evaluation can be resumed.

    The first line is a fingerprint of everything that affects predictions (weights, prompt,
    sampling, data). A file with another fingerprint is overwritten. Each further line contains the
    predictions of one batch: an empty list if none of the batch's clips could be read. The size of
    a batch affects sampling and rounding, so a resumed evaluation has to use the same batches as an
    uninterrupted one.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.batches = self._read()

    @property
    def num_batches(self) -> int:
        return len(self.batches)

    @property
    def done(self) -> list[Prediction]:
        """All predictions so far, in order."""
        return [prediction for batch in self.batches for prediction in batch]

    def _read(self) -> list[list[Prediction]]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be incomplete
        if not lines or lines[0] != self._head():
            return []
        return [[prediction_of(row) for row in json.loads(line)] for line in lines[1:]]

    def _head(self) -> str:
        return json.dumps({"fingerprint": self.fingerprint})

    def extend(self, predictions: Iterable[Prediction]) -> None:
        """Appends a batch of predictions; they are on disk when this returns."""
        fresh = list(predictions)
        with disk_errors(self.path):
            if self.num_batches == 0:
                self.path.write_text(self._head() + "\n", encoding="utf-8")
            else:
                self._drop_half_line()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([asdict(p) for p in fresh]) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.batches.append(fresh)

    def _drop_half_line(self) -> None:
        raw = self.path.read_bytes()
        if not raw.endswith(b"\n"):
            os.truncate(self.path, raw.rfind(b"\n") + 1)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def predict_all(
    *,
    task: Task,
    rollout: RolloutEngine,
    batches: Iterable[PromptBatch | SplitBatch],
    seed: int,
    device: torch.device,
    partial: PartialPredictions,
    on_batch: Callable[[int], None],
) -> list[Prediction]:
    """Predicts the remaining batches; returns the predictions in `partial` and the new ones.

    Args:
        task: parses and scores completions.
        rollout: the sampler; its `setup` has been called.
        batches: the remaining batches, in order.
        seed: seed of the sampler; greedy decoding ignores it.
        device: batches are moved to this device.
        partial: receives every batch's predictions.
        on_batch: called after each batch with the number of its predictions, to show progress.
    """
    with awake(rollout):
        for prompts in batches:
            predictions = predict_batch(
                task=task, rollout=rollout, prompts=prompts, seed=seed, device=device
            )
            partial.extend(predictions)
            on_batch(len(predictions))
    return partial.done
