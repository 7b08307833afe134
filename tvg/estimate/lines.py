"""Rows of the memory table, and their peaks over the phases of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Phase = Literal[
    "always", "loading", "vision", "sampling", "reference", "learning", "optimizer", "validation"
]
PHASES: tuple[Phase, ...] = tuple(phase for phase in get_args(Phase) if phase != "always")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the table."""

    name: str
    phase: Phase
    gpu: float  # bytes
    host: float = 0  # bytes in CPU memory, for this GPU's process
    detail: str = ""


def total(lines: list[Line]) -> float:
    """Returns the peak bytes on a GPU: the permanent memory plus the largest phase."""
    return _sum(lines, "always") + max(_sum(lines, phase) for phase in PHASES)


def worst_phase(lines: list[Line]) -> Phase:
    """Returns the phase with the peak memory."""
    return max(PHASES, key=lambda phase: _sum(lines, phase))


def host_total(lines: list[Line]) -> float:
    """Returns the peak bytes in CPU memory of one process: while loading, or afterwards."""
    training = sum(line.host for line in lines if line.phase != "loading")
    return max(training, sum(line.host for line in lines if line.phase == "loading"))


def _sum(lines: list[Line], phase: Phase) -> float:
    return sum(line.gpu for line in lines if line.phase == phase)
