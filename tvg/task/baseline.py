"""Baselines that ignore the video; a useful policy has to exceed their scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from tvg.core.interval import segment_iou, temporal_iou
from tvg.task.predictions import Prediction
from tvg.types import GroundingExample, Segment


def best_constant_segment(examples: Iterable[GroundingExample], *, step: float = 0.05) -> Segment:
    """Returns the constant answer with the highest mIoU, as fractions of the clip's duration.

    Args:
        examples: the queries; those without a segment or a duration are ignored.
        step: step of the search grid, as a fraction of the duration.

    Raises:
        ValueError: no example has both a segment and a duration.
    """
    truths = _fractions(examples)
    marks = torch.arange(0, 1 + step / 2, step, dtype=torch.float64)
    pairs = torch.cartesian_prod(marks, marks)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    scores = torch.stack([temporal_iou(pair.expand_as(truths), truths).mean() for pair in pairs])
    start, end = pairs[scores.argmax()].tolist()
    return Segment(start, end)


def random_segments(examples: Sequence[GroundingExample], num: int, *, seed: int) -> list[Segment]:
    """Draws `num` true segments of the examples, as fractions of the clip's duration.

    This is the chance baseline: guesses with realistic lengths and positions.

    Raises:
        ValueError: no example has both a segment and a duration.
    """
    known = _fractions(examples)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(known), (num,), generator=generator)
    return [Segment(*known[row].tolist()) for row in rows]


def blind_predictions(
    examples: Sequence[GroundingExample], fractions: Sequence[Segment]
) -> list[Prediction]:
    """Predicts the given fractions of the clip for each query, ignoring the video.

    Raises:
        ValueError: an example's duration is unknown.
    """
    predictions = []
    for example, guess in zip(examples, fractions, strict=True):
        if example.duration_s is None:
            raise ValueError(f"{example.qid}: a blind guess needs the clip's duration")
        segment = Segment(guess.start_s * example.duration_s, guess.end_s * example.duration_s)
        predictions.append(
            Prediction(
                qid=example.qid,
                video=example.video,
                query=example.query,
                segment=segment,
                truth=example.segment,
                score=None if example.segment is None else segment_iou(segment, example.segment),
                text=f"{segment.start_s:.2f} to {segment.end_s:.2f}",
                duration_s=example.duration_s,
                is_parsed=True,
            )
        )
    return predictions


def _fractions(examples: Iterable[GroundingExample]) -> torch.Tensor:
    """Returns known segments as fractions of their clips: float64 [known examples, 2]."""
    known = [(e.segment, e.duration_s) for e in examples if e.segment and e.duration_s]
    if not known:
        raise ValueError("a blind guess needs examples with a segment and a duration")
    return torch.tensor([[s.start_s / d, s.end_s / d] for s, d in known], dtype=torch.float64)
