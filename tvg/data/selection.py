"""Which examples to train on, chosen by how hard they are or by any other number they carry.

Each recipe is a pure function of numbers that returns positions, and a function of examples
(`select_...`) that a config builds as a partial, under `data.selection`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tvg.types import GroundingExample

KEY = "data.selection"  # where these settings stand, for messages


class NothingSelectedError(ValueError):
    """No example is what a selection looks for."""


def gaussian(
    values: Sequence[float], *, mean: float, std: float, k: int | None, seed: int
) -> list[int]:
    """Draws `k` positions without replacement, with weights exp(-(v - mean)^2 / (2 std^2)).

    Values of 0 and below are never drawn. Time-R1's `gaussian_03` is mean 0.3, std 0.2.

    Returns:
        Ascending positions; all with a value above 0 where those are no more than `k`.

    Raises:
        ValueError: `std` or `k` is not positive.
    """
    _check_k(k)
    if not std > 0:
        raise ValueError(f"{KEY}.std must be above 0: got {std}")
    # The k largest of log-weight + Gumbel noise are such a draw; far values, whose weights are 0
    # in floating point, stay possible where nothing nearer is left.
    weights = gaussian_log_weights(values, mean=mean, std=std)
    order = np.argsort(-(weights + np.random.default_rng(seed).gumbel(size=len(values))))
    drawn = order[: min(len(order) if k is None else k, np.isfinite(weights).sum())]
    return sorted(drawn.tolist())


def gaussian_log_weights(
    values: Sequence[float], *, mean: float, std: float
) -> NDArray[np.float64]:
    """Returns -(v - mean)^2 / (2 std^2) of each value above 0, and -inf for the others."""
    found = np.array(values, dtype=np.float64)
    return np.where(found > 0, -((found - mean) ** 2) / (2 * std**2), -np.inf)


def band(values: Sequence[float], *, low: float, high: float, k: int | None) -> list[int]:
    """Takes `k` of the values in (low, high], evenly spaced in their descending order.

    Time-R1's `0070_all` is low 0, high 0.7.

    Returns:
        Positions, by descending value (equal values: in their order); all of the band where that
        is no more than `k`.

    Raises:
        ValueError: low is not below high, or `k` is not positive.
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
    """Draws `k` of `num` positions, each as likely as any other; ascending.

    Raises:
        ValueError: `k` is not positive.
    """
    _check_k(k)
    return sorted(np.random.default_rng(seed).permutation(num)[:k].tolist())


def top(values: Sequence[float], *, k: int | None, largest: bool) -> list[int]:
    """Takes the `k` largest (or smallest) values.

    Returns:
        Positions, the most extreme value first (equal values: in their order).

    Raises:
        ValueError: `k` is not positive.
    """
    _check_k(k)
    sign = -1 if largest else 1
    return sorted(range(len(values)), key=lambda index: sign * values[index])[:k]


def field_values(examples: Sequence[GroundingExample], *, field: str, unit: float) -> list[float]:
    """Returns each example's `field` in multiples of `unit`.

    Args:
        examples: as read.
        field: `difficulty`, `duration_s`, `length_s` (of the true segment), or the name of a number
            that the annotation file states beside what every example has, such as `pass_rate`.
        unit: the value is divided by this: 100 makes a fraction of a percentage. (A factor of 0.01
            would not do: 70 * 0.01 is more than 0.7.)

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
    """Selects nothing away."""
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
    """`gaussian` on `field` / `unit`; in the file's order."""
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
    """`band` on `field` / `unit`; by descending value."""
    positions = band(field_values(examples, field=field, unit=unit), low=low, high=high, k=k)
    return _taken(examples, positions, f"above {low * unit:g} and at most {high * unit:g}", field)


def select_random(
    examples: Sequence[GroundingExample], *, k: int | None, seed: int
) -> list[GroundingExample]:
    """`uniform`; in the file's order."""
    return [examples[index] for index in uniform(len(examples), k=k, seed=seed)]


def select_top(
    examples: Sequence[GroundingExample], *, field: str, k: int | None, largest: bool
) -> list[GroundingExample]:
    """`top` on `field`; the most extreme first, so that k=null sorts a curriculum."""
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
