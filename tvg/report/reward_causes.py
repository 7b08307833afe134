"""Finds reasons why rewards give no signal, from completions and their rewards."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

_REWARD = "reward_"


@dataclass(frozen=True)
class Tally:
    """Counts over a set of completions; tallies of several rollouts can be added."""

    num: int = 0
    num_parsed: int = 0
    num_finished: int = 0
    num_exact: int = 0  # answers in exactly the requested format
    num_groups: int = 0
    num_flat_groups: int = 0  # groups whose total rewards are all equal
    # name -> (smallest, largest) value of each reward; "" is the total
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        names = self.ranges.keys() | other.ranges.keys()
        both = {n: [t.ranges[n] for t in (self, other) if n in t.ranges] for n in sorted(names)}
        return Tally(
            num=self.num + other.num,
            num_parsed=self.num_parsed + other.num_parsed,
            num_finished=self.num_finished + other.num_finished,
            num_exact=self.num_exact + other.num_exact,
            num_groups=self.num_groups + other.num_groups,
            num_flat_groups=self.num_flat_groups + other.num_flat_groups,
            ranges={n: (min(r)[0], max(high for _, high in r)) for n, r in both.items()},
        )

    @property
    def unparsed(self) -> float:
        return 1 - self.num_parsed / max(1, self.num)

    @property
    def truncated(self) -> float:
        return 1 - self.num_finished / max(1, self.num)

    @property
    def exact(self) -> float:
        return self.num_exact / max(1, self.num)

    @property
    def flat_groups(self) -> float:
        return self.num_flat_groups / max(1, self.num_groups)

    def constant(self, name: str) -> float | None:
        """Returns the value that a reward had in all completions; None if it varied."""
        low, high = self.ranges[name]
        return low if low == high else None


def tally(rows: Sequence[Mapping[str, Any]]) -> Tally:
    """Counts the rows of one rollout, as returned by `tvg.training.rollout_log`."""
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row["group"])]
    names = {name: name.removeprefix(_REWARD) for name in rows[0] if name.startswith(_REWARD)}
    values = {"": [row["reward"] for row in rows]}
    values |= {short: [row[name] for row in rows] for name, short in names.items()}
    return Tally(
        num=len(rows),
        num_parsed=sum(row["parsed"] for row in rows),
        num_finished=sum(row["finished"] for row in rows),
        num_exact=sum(row["exact"] for row in rows),
        num_groups=len(groups),
        num_flat_groups=sum(len({row["reward"] for row in group}) == 1 for group in groups),
        ranges={name: (min(found), max(found)) for name, found in values.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits beyond which a cause is reported, and values that the messages use."""

    max_unparsed: float
    max_truncated: float
    max_flat_groups: float
    max_kl: float | None
    max_new_tokens: int
    max_exact_drop: float  # largest drop below the best share of exactly formatted answers so far


class Cause(NamedTuple):
    """A reason why a run does not learn; if `is_grave` is False, only information."""

    name: str
    message: str
    is_grave: bool = True


def find_causes(
    found: Tally,
    limits: Limits,
    *,
    paid: Iterable[str],
    penalties: Collection[str],
    kl: float | None,
    best_exact: float,
) -> list[Cause]:
    """Finds the causes to report; a cause that explains other causes replaces them.

    Args:
        found: counts over the completions of the last rollouts.
        limits: limits beyond which a cause is reported.
        paid: rewards whose weight is not 0.
        penalties: rewards among them whose best value is 0.
        kl: mean KL to the reference; None if there is none.
        best_exact: largest share of exactly formatted answers in any earlier window.
    """
    causes = [] if kl is None else _kl(kl, limits)
    if found.constant("") == 0:
        message = f"the total reward was 0 in all of the last {found.num} completions, of which "
        return [*causes, Cause("all_zero", message + _why(found, limits))]
    flat = [_flat(name, found, limits) for name in paid if name not in penalties]
    told = [cause for cause in flat if cause is not None]
    if any(cause.is_grave for cause in told):
        return causes + told
    return causes + told + _shares(found, limits, best_exact)


def _kl(kl: float, limits: Limits) -> list[Cause]:
    if limits.max_kl is None or kl <= limits.max_kl:
        return []
    message = (
        f"the KL to the reference is {kl:.3g} per token, above {limits.max_kl:g}: the policy moves "
        "too far from the reference: lower objective.optimizer.lr or raise objective.loss.kl_coef"
    )
    return [Cause("kl", message)]


def _flat(name: str, found: Tally, limits: Limits) -> Cause | None:
    """Returns a cause if a reward has the same value in all completions."""
    value = found.constant(name) if name in found.ranges else None
    if value is None:
        return None
    if value > 0:
        message = (
            f"{name}: {value:g} in all of the last {found.num} completions: it no longer "
            f"discriminates (no problem if the policy has learned it; otherwise see reward.{name})"
        )
        return Cause(f"constant.{name}", message, is_grave=False)
    message = f"{name}: {value:g} in all of the last {found.num} completions, of which "
    return Cause(f"flat.{name}", message + _why(found, limits))


def _shares(found: Tally, limits: Limits, best_exact: float) -> list[Cause]:
    causes = []
    facts = f"of the last {found.num} completions, {_facts(found, limits)}"
    if found.truncated > limits.max_truncated:
        causes.append(Cause("truncated", f"{facts}: {_RAISE_LENGTH}"))
    elif found.unparsed > limits.max_unparsed:
        causes.append(Cause("unparsed", f"{facts}: {_FORMAT_UNKNOWN}"))
    elif found.exact < best_exact - limits.max_exact_drop:
        message = (
            f"{_percent(found.exact)} of the last {found.num} answers have exactly the requested "
            f"format, against {_percent(best_exact)} in the best earlier window: the policy drifts "
            "into formats that only the tolerant parser accepts: reward the format "
            "(reward=[format_exact,...]), or accept exact answers only (prompt.strict_answer=true)"
        )
        causes.append(Cause("exact_format", message))
    if found.flat_groups > limits.max_flat_groups:
        message = (
            f"all completions of a group have the same reward in {_percent(found.flat_groups)} of "
            f"the last {found.num_groups} groups, which gives no signal: raise rollout.temperature "
            "or objective.group_size, train on examples that are neither too easy nor too hard "
            "(data/selection), or replace such groups (objective.resample_flat_groups)"
        )
        causes.append(Cause("flat_groups", message))
    return causes


_RAISE_LENGTH = "raise it, or ask for shorter answers (another prompt=)"
_FORMAT_UNKNOWN = (
    "rollouts.jsonl shows the completions; the model may not know this prompt's answer format: "
    "choose another prompt=, or train with objective=sft first and set model.path to its export"
)
_NO_OVERLAP = (
    "answers can be parsed, but get no reward: use easier examples (data/selection), a reward that "
    "grows with closeness (reward=[format,giou]), or supervised training first (objective=sft)"
)


def _why(found: Tally, limits: Limits) -> str:
    if found.truncated > limits.max_truncated:
        advice = _RAISE_LENGTH
    else:
        advice = _FORMAT_UNKNOWN if found.unparsed > limits.max_unparsed else _NO_OVERLAP
    return f"{_facts(found, limits)}: {advice}"


def _facts(found: Tally, limits: Limits) -> str:
    return (
        f"{_percent(found.unparsed)} cannot be parsed and {_percent(found.truncated)} are "
        f"truncated at rollout.max_new_tokens={limits.max_new_tokens}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
