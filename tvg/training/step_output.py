"""Record that a training step returns: metrics, counts, times and completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_KEY = "step_output"

Metrics = Mapping[str, Tensor | float]


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """The result of `training_step`, for the logs and the callbacks.

    The metrics are of this rank. Their mean over ranks is logged as `train/NAME`.
    """

    num_prompts: int
    num_tokens: int  # tokens of the completions
    metrics: Metrics
    max_metrics: Metrics = field(default_factory=dict)  # logged as the maximum over ranks
    shown: tuple[str, ...] = ()  # metrics for the progress bar
    num_flops: float | None = None  # required operations of the step; None: not counted
    rows: list[dict[str, Any]] | None = None  # one plain dict per completion; None: none sampled
    stage_s: dict[str, float] = field(default_factory=dict)  # seconds of each stage

    def for_lightning(self) -> dict[str, Any]:
        """Returns the record in the form that Lightning passes to callbacks."""
        return {_KEY: self}

    @staticmethod
    def of(outputs: Any) -> StepOutput | None:
        """Returns the record in the `outputs` of a callback; None if there is none."""
        found = outputs.get(_KEY) if isinstance(outputs, Mapping) else None
        return found if isinstance(found, StepOutput) else None
