"""Predictions and scores, shared by validation, evaluation and prediction."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from tvg.core.interval import exact_iou, segment_iou
from tvg.core.metrics import grounding_metrics
from tvg.core.writing import disk_errors
from tvg.data.readers.record import ReadReport
from tvg.data.readers.rules import VIDEO_MISSING
from tvg.model.policy import Policy
from tvg.rollout.base import Rollout
from tvg.task.grounding import GroundingTask
from tvg.task.predictions import Prediction
from tvg.types import GroundingExample, PromptBatch, Segment

Counts = dict[str, int]


def predict_batch(
    *,
    policy: Policy,
    tokenizer: Any,
    task: GroundingTask,
    rollout: Rollout,
    prompts: PromptBatch,
    seed: int,
) -> list[Prediction]:
    """One prediction per prompt; an unparseable completion has no segment and scores 0."""
    if len(prompts) == 0:  # no clip of the batch could be read
        return []
    sampled = rollout.generate(
        policy=policy, tokenizer=tokenizer, prompts=prompts, group_size=1, seed=seed
    )
    predictions = []
    for example, duration_s, text in zip(
        prompts.examples, prompts.duration_s.tolist(), sampled.texts, strict=True
    ):
        segment = task.parse(text, anywhere=True).segment
        predictions.append(
            Prediction(
                qid=example.qid,
                video=example.video,
                query=example.query,
                segment=segment,
                truth=example.segment,
                iou=None if example.segment is None else segment_iou(segment, example.segment),
                text=text,
                duration_s=duration_s,
                is_parsed=segment is not None,
                is_exact=task.has_exact_format(text),
            )
        )
    return predictions


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


def known_ious(predictions: Iterable[Prediction]) -> list[float]:
    """The IoU of every prediction.

    Raises:
        ValueError: the true segment of a query is unknown.
    """
    ious = []
    for prediction in predictions:
        if prediction.iou is None:
            raise ValueError(f"{prediction.qid}: no true segment is known, it cannot be scored")
        ious.append(prediction.iou)
    return ious


def exact_ious(predictions: Iterable[Prediction]) -> list[Fraction]:
    """The IoU of every prediction in exact arithmetic, for recalls.

    Raises:
        ValueError: the true segment of a query is unknown.
    """
    predictions = list(predictions)
    known_ious(predictions)
    return [exact_iou(prediction.segment, prediction.truth) for prediction in predictions]


def score(
    predictions: Sequence[Prediction], *, seed: int = 0, strict: bool = False
) -> dict[str, Any]:
    """Recalls, mIoU, parse rate and share of exactly formatted answers, by `grounding_metrics`.

    Args:
        predictions: with known true segments.
        seed: seed of the bootstrap.
        strict: recalls count IoU > m.
    """
    flags = [prediction.is_exact for prediction in predictions]
    known = [flag for flag in flags if flag is not None]
    return grounding_metrics(
        exact_ious(predictions),
        [prediction.is_parsed for prediction in predictions],
        exact_format=known if len(known) == len(flags) else None,
        seed=seed,
        strict=strict,
    )


def with_difficulty(
    examples: Sequence[GroundingExample], predictions: Iterable[Prediction], task: GroundingTask
) -> list[GroundingExample]:
    """Adds to each example its prediction and its difficulty, 100 * IoU of the prediction.

    Examples without a prediction (unreadable clips) stay unchanged.

    Args:
        examples: the examples to rate.
        predictions: their predictions, in any order.
        task: parses completions without a segment again, by `rated_segment`.

    Raises:
        ValueError: the true segment of a query is unknown.
    """
    found = {prediction.qid: prediction for prediction in predictions}
    known_ious(found.values())
    rated = {
        qid: task.rated_segment(p.text) if p.segment is None else p.segment
        for qid, p in found.items()
    }
    return [
        replace(
            example,
            difficulty=100 * segment_iou(rated[example.qid], found[example.qid].truth),
            prediction=rated[example.qid],
        )
        if example.qid in found
        else example
        for example in examples
    ]


def coverage(report: ReadReport, *, num_usable: int, num_asked: int, num_scored: int) -> Counts:
    """Counts the queries of a file, and by reason those that are not scored.

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
    """The predictions so far, in a file, so that an interrupted evaluation can be resumed.

    The first line is a fingerprint of everything that affects predictions (weights, prompt,
    sampling, data). A file with another fingerprint is started anew, never mixed in. Each further
    line holds one whole batch (an empty list if none of its clips could be read). The size of a
    batch affects sampling and rounding, so a resumed evaluation has to use the same batches as an
    uninterrupted one.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint
        batches = self._read()
        self.num_batches = len(batches)
        self.done = [prediction for batch in batches for prediction in batch]

    def _read(self) -> list[list[Prediction]]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be cut off
        if not lines or lines[0] != self._head():
            return []
        return [[_from_row(row) for row in json.loads(line)] for line in lines[1:]]

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
        self.num_batches += 1
        self.done += fresh

    def _drop_half_line(self) -> None:
        raw = self.path.read_bytes()
        if not raw.endswith(b"\n"):
            os.truncate(self.path, raw.rfind(b"\n") + 1)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def predict_all(
    *,
    policy: Policy,
    tokenizer: Any,
    task: GroundingTask,
    rollout: Rollout,
    batches: Iterable[PromptBatch],
    seed: int,
    device: torch.device,
    partial: PartialPredictions,
    on_batch: Callable[[int], None],
) -> list[Prediction]:
    """Predicts the remaining batches; returns all predictions, those already in `partial` first.

    Args:
        policy: on `device`.
        tokenizer: turns ids into text.
        task: parses completions.
        rollout: the sampler.
        batches: the remaining batches, in order.
        seed: seed of the sampler, unless it is greedy.
        device: batches are moved to this device.
        partial: receives every batch's predictions.
        on_batch: called after each batch with its number of predictions, for progress.
    """
    for prompts in batches:
        predictions = predict_batch(
            policy=policy,
            tokenizer=tokenizer,
            task=task,
            rollout=rollout,
            prompts=prompts.to(device),
            seed=seed,
        )
        partial.extend(predictions)
        on_batch(len(predictions))
    return partial.done


def _from_row(row: dict[str, Any]) -> Prediction:
    for key in ("segment", "truth"):
        row[key] = Segment(*row[key]) if row[key] is not None else None
    return Prediction(**row)
