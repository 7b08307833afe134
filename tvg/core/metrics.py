"""Temporal-grounding metrics over a set of queries, with bootstrap intervals.

R1@m is the share of queries whose single prediction has IoU >= m, the usual convention (the
published Time-R1 scorer uses > m). The comparison is exact: see `tvg.core.interval.exact_iou`.
mIoU is the mean IoU. Both divide by the number of all queries: an answer that cannot be parsed
counts as IoU 0. All metrics are fractions in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tvg.core.interval import decimal_fraction

_IOU_NOISE = 1e-9  # tolerance above 1, for binary rounding
_BLOCK_NUMBERS = 1 << 20  # resamples x queries held at once; limits memory on large benchmarks
_INTERVAL = (0.025, 0.975)


def grounding_metrics(
    ious: Sequence[float | Fraction],
    parsed: Sequence[bool],
    *,
    exact_format: Sequence[bool] | None = None,
    thresholds: Sequence[float] = (0.3, 0.5, 0.7),
    strict: bool = False,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Returns recalls, mean IoU and parse rate, with 95 % percentile bootstrap intervals.

    Args:
        ious: IoU of each query, 0 if nothing was parsed. Fractions (`exact_iou`) give exact
            recalls; a float is read as the shortest decimal that represents it.
        parsed: whether a segment could be read from each answer.
        exact_format: whether each answer has exactly the requested format; None if not known.
        thresholds: IoU thresholds of the recalls.
        strict: recalls count IoU > m, like the published Time-R1 scorer.
        seed: seed of the bootstrap over queries; the same seed gives the same intervals.
        resamples: number of bootstrap samples.

    Returns:
        {"n", "miou", "r1_iou_0.3", ..., "parse_rate", "exact_format_rate" (if known),
        "ci95": {name: [low, high]}}, ready for JSON.

    Raises:
        ValueError: if there is no query, the lengths differ, or an IoU is not in [0, 1].
    """
    flags = {"parsed": parsed} | ({} if exact_format is None else {"exact_format": exact_format})
    if not len(ious) or any(len(some) != len(ious) for some in flags.values()):
        raise ValueError(
            "metrics need at least one query, and as many flags as IoUs: got "
            f"{len(ious)} IoUs, {' and '.join(f'{len(s)} {n}' for n, s in flags.items())} flags"
        )
    for index, value in enumerate(ious):
        if not 0 <= value <= 1 + _IOU_NOISE:
            raise ValueError(f"IoU of query {index} must be in [0, 1]: got {value}")
    exact = [iou if isinstance(iou, Fraction) else decimal_fraction(iou) for iou in ious]
    scores = {"miou": torch.tensor(list(map(float, ious)), dtype=torch.float64)}
    for threshold in thresholds:
        least = decimal_fraction(threshold)
        hits = [float(iou > least if strict else iou >= least) for iou in exact]
        scores[f"r1_iou_{threshold:g}"] = torch.tensor(hits, dtype=torch.float64)
    scores["parse_rate"] = torch.tensor([float(is_parsed) for is_parsed in parsed]).double()
    if exact_format is not None:
        scores["exact_format_rate"] = torch.tensor([float(flag) for flag in exact_format]).double()
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
    """Returns the gain in mean IoU of b over a on the same queries, with a paired bootstrap.

    Args:
        a: IoU of each query under the first policy.
        b: IoU of the same queries, in the same order, under the second policy.
        seed: seed of the bootstrap.
        resamples: number of bootstrap samples.

    Returns:
        {"miou": mean(b - a), "ci95": [low, high]}.

    Raises:
        ValueError: if there is no query, the lengths differ, or a value is not finite.
    """
    if not len(a) or len(a) != len(b):
        raise ValueError(
            "a paired comparison needs the same queries for both policies: "
            f"got {len(a)} and {len(b)} IoUs"
        )
    if not all(map(math.isfinite, (*a, *b))):
        raise ValueError("a paired comparison needs finite IoUs: got NaN or infinity")
    gains = torch.tensor(list(b), dtype=torch.float64) - torch.tensor(list(a), dtype=torch.float64)
    (interval,) = _bootstrap_intervals(gains[:, None], seed=seed, resamples=resamples)
    return {"miou": gains.mean().item(), "ci95": interval}


def _bootstrap_intervals(per_query: Tensor, *, seed: int, resamples: int) -> list[list[float]]:
    """Returns the interval [low, high] of the mean of each column of [n, K], resampling rows."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1: got {resamples}")
    num_queries = len(per_query)
    generator = torch.Generator().manual_seed(seed)
    means = []
    block = max(1, _BLOCK_NUMBERS // num_queries)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = torch.randint(num_queries, (rows, num_queries), generator=generator)
        # Count how often each query was drawn, so that one matrix product covers all columns.
        counts = torch.zeros(rows, num_queries, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(counts))
        means.append(counts @ per_query / num_queries)
    edges = torch.tensor(_INTERVAL, dtype=torch.float64)
    return torch.quantile(torch.cat(means), edges, dim=0).t().tolist()
