"""Selects training examples by difficulty or by any other number in the annotations.

Each recipe consists of a pure function that maps numbers to positions, and a function of examples
(`select_...`) that configs build as a partial under `data.selection`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tvg.types import GroundingExample

KEY = "data.selection"  # config key of these settings, for messages


class NothingSelectedError(ValueError):
    """No example satisfies the criterion of a selection."""


def gaussian(
    values: Sequence[float], *, mean: float, std: float, k: int | None, seed: int
) -> list[int]:
    """Draws `k` positions without replacement, with weights exp(-(v - mean)^2 / (2 std^2)).

    Values of 0 and below are never drawn. Time-R1's `gaussian_03` uses mean 0.3 and std 0.2.

    Returns:
        Ascending positions; all positions with a value above 0 if there are at most `k`.

    Raises:
        ValueError: `std` or `k` is not positive.
    """
    _check_k(k)
    if not std > 0:
        raise ValueError(f"{KEY}.std must be above 0: got {std}")
    # Gumbel top-k: the k largest values of log-weight + Gumbel noise are such a sample. In log
    # space, values far from the mean can be drawn although their weights underflow to 0.
    weights = gaussian_log_weights(values, mean=mean, std=std)
    order = np.argsort(-(weights + np.random.default_rng(seed).gumbel(size=len(values))))
    drawn = order[: min(len(order) if k is None else k, np.isfinite(weights).sum())]
    return sorted(drawn.tolist())


def gaussian_log_weights(
    values: Sequence[float], *, mean: float, std: float
) -> NDArray[np.float64]:
    """Returns -(v - mean)^2 / (2 std^2) for each value above 0, and -inf for the others."""
    found = np.array(values, dtype=np.float64)
    return np.where(found > 0, -((found - mean) ** 2) / (2 * std**2), -np.inf)


def band(values: Sequence[float], *, low: float, high: float, k: int | None) -> list[int]:
    """Selects `k` of the values in (low, high], evenly spaced by descending rank.

    Time-R1's `0070_all` uses low 0 and high 0.7.

    Returns:
        Positions by descending value (equal values keep their order); the whole band if it has at
        most `k` values.

    Raises:
        ValueError: `low` is not below `high`, or `k` is not positive.
    """
    _check_k(k)
    if not low < high:
        raise ValueError(f"{KEY}.low must be below {KEY}.high: got {low} and {high}")
    kept = [index for index, value in enumerate(values) if low < value <= high]
    kept.sort(key=lambda index: -values[index])
    if k is None or k >= len(kept):
        return kept
    return [kept[place] for place in np.linspace(0, len(kept) - 1, k).round().astype(int)]


def uniform(num: int, *, k: int | None, seed: int) -> list[int]:
    """Draws `k` of `num` positions uniformly; returns them in ascending order.

    Raises:
        ValueError: `k` is not positive.
    """
    _check_k(k)
    return sorted(np.random.default_rng(seed).permutation(num)[:k].tolist())


def top(values: Sequence[float], *, k: int | None, largest: bool) -> list[int]:
    """Selects the `k` largest (or smallest) values.

    Returns:
        Positions, the most extreme value first (equal values keep their order).

    Raises:
        ValueError: `k` is not positive.
    """
    _check_k(k)
    sign = -1 if largest else 1
    return sorted(range(len(values)), key=lambda index: sign * values[index])[:k]


def field_values(examples: Sequence[GroundingExample], *, field: str, unit: float) -> list[float]:
    """Returns each example's `field` in multiples of `unit`.

    Args:
        examples: the examples as read.
        field: `difficulty`, `duration_s`, `length_s` (of the true segment), or the name of another
            number in the annotation file, such as `pass_rate`.
        unit: divisor of the value; 100 converts percentages to fractions. (Multiplying by 0.01
            would be inexact: 70 * 0.01 is more than 0.7.)

    Raises:
        ValueError: an example has no such number, or `unit` is not positive.
    """
    if not 0 < unit < math.inf:
        raise ValueError(f"{KEY}.unit must be above 0: got {unit}")
    return [_number(example, field) / unit for example in examples]


def _number(example: GroundingExample, field: str) -> float:
    own = {
        "difficulty": example.difficulty,
        "duration_s": example.duration_s,
        "length_s": None if example.segment is None else example.segment.length_s,
    }
    known = dict(example.extra) | own
    value = known.get(field)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    usable = [name for name, found in known.items() if isinstance(found, int | float)]
    raise ValueError(
        f"{KEY}.field={field}: expected a number in every example, got "
        f"{'nothing' if value is None else repr(value)} in {example.qid} (its numbers: "
        f"{', '.join(usable) or 'none'})"
    )


def keep_all(examples: Sequence[GroundingExample]) -> list[GroundingExample]:
    """Keeps all examples."""
    return list(examples)


def select_gaussian(
    examples: Sequence[GroundingExample],
    *,
    field: str,
    unit: float,
    mean: float,
    std: float,
    k: int | None,
    seed: int,
) -> list[GroundingExample]:
    """Applies `gaussian` to `field` / `unit`; keeps the file's order."""
    values = field_values(examples, field=field, unit=unit)
    return _taken(examples, gaussian(values, mean=mean, std=std, k=k, seed=seed), "above 0", field)


def select_band(
    examples: Sequence[GroundingExample],
    *,
    field: str,
    unit: float,
    low: float,
    high: float,
    k: int | None,
) -> list[GroundingExample]:
    """Applies `band` to `field` / `unit`; orders by descending value."""
    positions = band(field_values(examples, field=field, unit=unit), low=low, high=high, k=k)
    return _taken(examples, positions, f"above {low * unit:g} and at most {high * unit:g}", field)


def select_random(
    examples: Sequence[GroundingExample], *, k: int | None, seed: int
) -> list[GroundingExample]:
    """Applies `uniform`; keeps the file's order."""
    return [examples[index] for index in uniform(len(examples), k=k, seed=seed)]


def select_top(
    examples: Sequence[GroundingExample], *, field: str, k: int | None, largest: bool
) -> list[GroundingExample]:
    """Applies `top` to `field`, the most extreme value first; k=null gives a curriculum."""
    values = field_values(examples, field=field, unit=1)
    return [examples[index] for index in top(values, k=k, largest=largest)]


def _taken(
    examples: Sequence[GroundingExample], positions: list[int], wanted: str, field: str
) -> list[GroundingExample]:
    if examples and not positions:
        raise NothingSelectedError(
            f"{KEY}: none of the {len(examples)} examples has a {field} {wanted}"
        )
    return [examples[index] for index in positions]


def _check_k(k: int | None) -> None:
    if k is not None and k < 1:
        raise ValueError(f"{KEY}.k must be 1 or more, or null for all: got {k}")
