"""Times the stages of a training step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageClock:
    """Adds up the seconds of named stages; synchronises a GPU before it reads the time.

    A step has few stages, so the cost of synchronising is negligible.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str, device: torch.device) -> Iterator[None]:
        begin = _now(device)
        try:
            yield
        finally:
            self._seconds[name] += _now(device) - begin

    def take(self) -> dict[str, float]:
        """Returns the seconds of each stage since the last call."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
