"""Suggests settings that reduce the memory of a job; the estimate verifies each suggestion."""

from __future__ import annotations

from dataclasses import dataclass

from tvg.estimate.changes import ALTERNATIVES, all_changes
from tvg.estimate.job import Job
from tvg.estimate.lines import host_total, total
from tvg.estimate.memory import estimate

LEAST_SHARE = 0.01  # of the total; smaller savings are not listed


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change of the command line."""

    words: str
    saved: float  # bytes per GPU, if this is the only change
    cost: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Several changes of the command line."""

    words: tuple[str, ...]
    costs: tuple[str, ...]
    price: float
    job: Job

    @property
    def gpu(self) -> float:
        """Bytes on a GPU at the peak."""
        return total(estimate(self.job))

    @property
    def host(self) -> float:
        """Bytes in the CPU memory of a node at the peak."""
        return host_total(estimate(self.job)) * self.job.sharding.devices_per_node


def remedies(job: Job) -> list[Remedy]:
    """Returns the changes that help on their own, largest saving first."""
    before = total(estimate(job))
    found = [
        Remedy(words=change.words, saved=before - total(estimate(change.job)), cost=change.cost)
        for change in all_changes(job)
    ]
    helping = [remedy for remedy in found if remedy.saved > LEAST_SHARE * before]
    return sorted(helping, key=lambda remedy: -remedy.saved)


def cheapest_that_fits(job: Job, usable: float) -> Setting | None:
    """Returns the combination of changes with the lowest price that fits; None if none does.

    Among combinations of the same price, it prefers fewer changes, then less memory.

    Args:
        job: the run.
        usable: bytes of a GPU that may be used.
    """
    settings = [Setting(words=(), costs=(), price=0, job=job)]
    for alternatives in ALTERNATIVES:
        settings += [
            Setting(
                words=(*setting.words, change.words),
                costs=(*setting.costs, *([change.cost] if change.cost != "none" else [])),
                price=setting.price + change.price,
                job=change.job,
            )
            for setting in settings
            for change in alternatives(setting.job)
        ]
    by_price = sorted(settings, key=lambda setting: (setting.price, len(setting.words)))
    for number, setting in enumerate(by_price):
        if setting.gpu <= usable:
            price, length = setting.price, len(setting.words)
            equal = [s for s in by_price[number:] if (s.price, len(s.words)) == (price, length)]
            return min(equal, key=lambda s: s.gpu)
    return None
