"""Scores of temporal grounding over a set of queries, with bootstrap intervals.

R1@m is the share of queries whose one prediction has IoU >= m (as the field counts; the published
Time-R1 scorer counts > m). mIoU is the mean IoU. Both divide by all queries: an answer that cannot
be parsed counts as IoU 0. Everything is a fraction in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_IOU_NOISE = 1e-9  # an IoU of exactly m in decimals may be a hair below m in binary
_BLOCK_NUMBERS = 1 << 20  # of resampled queries at once, to bound memory on large benchmarks
_INTERVAL = (0.025, 0.975)


def grounding_metrics(
    ious: Sequence[float],
    parsed: Sequence[bool],
    *,
    thresholds: Sequence[float] = (0.3, 0.5, 0.7),
    strict: bool = False,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Recalls, mean IoU and parse rate with 95 % percentile bootstrap intervals over queries.

    Args:
        ious: IoU of each query, 0 where nothing was parsed.
        parsed: whether a segment could be read from each answer.
        thresholds: of the recalls.
        strict: recalls count IoU > m, as the published Time-R1 scorer does.
        seed: of the bootstrap; the same seed gives the same intervals.
        resamples: number of bootstrap samples.

    Returns:
        {"n", "miou", "r1_iou_0.3", ..., "parse_rate", "ci95": {name: [low, high]}}, ready for JSON.

    Raises:
        ValueError: if there is no query, the lengths differ, or an IoU is not in [0, 1].
    """
    if not len(ious) or len(ious) != len(parsed):
        raise ValueError(
            "metrics need at least one query and one parse flag for each: "
            f"got {len(ious)} IoUs, {len(parsed)} flags"
        )
    for index, value in enumerate(ious):
        if not 0 <= value <= 1 + _IOU_NOISE:
            raise ValueError(f"IoU of query {index} must lie in [0, 1]: got {value}")
    iou = torch.tensor(list(ious), dtype=torch.float64)
    scores = {"miou": iou}
    for threshold in thresholds:
        is_hit = iou > threshold + _IOU_NOISE if strict else iou >= threshold - _IOU_NOISE
        scores[f"r1_iou_{threshold:g}"] = is_hit.double()
    scores["parse_rate"] = torch.tensor([float(is_parsed) for is_parsed in parsed]).double()
    per_query = torch.stack(list(scores.values()), dim=1)
    intervals = _bootstrap_intervals(per_query, seed=seed, resamples=resamples)
    means = per_query.mean(dim=0).tolist()
    return {
        "n": len(ious),
        **dict(zip(scores, means, strict=True)),
        "ci95": dict(zip(scores, intervals, strict=True)),
    }


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
    """Gain in mean IoU of b over a on the same queries, which are resampled as pairs.

    Args:
        a: IoU of each query under the first policy.
        b: IoU of the same queries, in the same order, under the second.
        seed: of the bootstrap.
        resamples: number of bootstrap samples.

    Returns:
        {"miou": mean(b - a), "ci95": [low, high]}.

    Raises:
        ValueError: if there is no query, the lengths differ, or a value is not finite.
    """
    if not len(a) or len(a) != len(b):
        raise ValueError(
            f"a paired comparison needs the same queries on both sides: got {len(a)} and {len(b)}"
        )
    if not all(map(math.isfinite, (*a, *b))):
        raise ValueError("a paired comparison needs finite IoUs: got NaN or infinity")
    gains = torch.tensor(list(b), dtype=torch.float64) - torch.tensor(list(a), dtype=torch.float64)
    (interval,) = _bootstrap_intervals(gains[:, None], seed=seed, resamples=resamples)
    return {"miou": gains.mean().item(), "ci95": interval}


def _bootstrap_intervals(per_query: Tensor, *, seed: int, resamples: int) -> list[list[float]]:
    """[low, high] of the mean of each column of [n, K], over resampled rows."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1: got {resamples}")
    num_queries = len(per_query)
    generator = torch.Generator().manual_seed(seed)
    means = []
    block = max(1, _BLOCK_NUMBERS // num_queries)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = torch.randint(num_queries, (rows, num_queries), generator=generator)
        # How often each query was drawn: one product then serves all columns.
        counts = torch.zeros(rows, num_queries, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(counts))
        means.append(counts @ per_query / num_queries)
    edges = torch.tensor(_INTERVAL, dtype=torch.float64)
    return torch.quantile(torch.cat(means), edges, dim=0).t().tolist()
