"""The record that a training step returns: metrics, counts, times and completions."""

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

    Metrics are those of this rank. They are logged as `train/NAME`, averaged over ranks.
    """

    num_prompts: int
    num_tokens: int  # of the completions that were trained on
    metrics: Metrics
    max_metrics: Metrics = field(default_factory=dict)  # logged as the maximum over ranks
    shown: tuple[str, ...] = ()  # metrics for the progress bar
    num_flops: float | None = None  # necessary operations of the step; None: not counted
    rows: list[dict[str, Any]] | None = None  # one plain dict per completion; None: none sampled
    stage_s: dict[str, float] = field(default_factory=dict)  # seconds of each stage

    def for_lightning(self) -> dict[str, Any]:
        """The output in the form that Lightning hands to callbacks."""
        return {_KEY: self}

    @staticmethod
    def of(outputs: Any) -> StepOutput | None:
        """The record in the `outputs` of a callback; None if they hold none."""
        found = outputs.get(_KEY) if isinstance(outputs, Mapping) else None
        return found if isinstance(found, StepOutput) else None
