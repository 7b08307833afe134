"""The interface of a task: its prompts, its parsing of answers, and its scores.

Training, evaluation, callbacks and records use tasks only through this interface. To add a task,
write one class with these members and one YAML file in `conf/prompt` that builds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tvg.core.parsing import ParsedAnswer
from tvg.task.predictions import Prediction
from tvg.types import GroundingExample


class Task(Protocol):
    """One kind of question about a video.

    Attributes:
        prefill: text after the generation prompt that every completion continues; None: no text.
        frame_times: format of a time, with one field `time_s`, written before the frames of that
            time. None: the model's family determines how the prompt states times.
        main_metric: name of the primary metric. Validation logs it as `val/NAME`, and a training
            run returns it.
        validation_metrics: names, or beginnings of names, of the metrics that validation logs.
    """

    @property
    def prefill(self) -> str | None: ...

    @property
    def frame_times(self) -> str | None: ...

    @property
    def main_metric(self) -> str: ...

    @property
    def validation_metrics(self) -> tuple[str, ...]: ...

    def asked_query(self, example: GroundingExample) -> str:
        """Returns an example's query as the prompt shows it."""

    def messages(self, example: GroundingExample) -> list[dict[str, Any]]:
        """Returns chat turns in Hugging Face's format, with one video placeholder."""

    def target(self, example: GroundingExample) -> str:
        """Returns the completion that is the target of supervised training.

        Raises:
            ValueError: the example has no label, or the task has no supervised target.
        """

    def typical_target(self) -> str | None:
        """Returns an example of a training target; None if the task has no supervised target."""

    def parse(self, text: str) -> ParsedAnswer:
        """Parses a completion for the rewards; text without an answer is not an error."""

    def is_parsed(self, answer: ParsedAnswer) -> bool:
        """Returns whether a parsed completion contains an answer to the task."""

    def has_exact_format(self, text: str) -> bool:
        """Returns whether a completion has exactly the requested format."""

    def predict(self, example: GroundingExample, text: str, *, duration_s: float) -> Prediction:
        """Parses a completion for evaluation, and scores its answer if the truth is known.

        Args:
            example: the example that the completion answers.
            text: the completion.
            duration_s: length of the clip.
        """

    def rate(self, example: GroundingExample, prediction: Prediction) -> GroundingExample:
        """Adds a prediction and the resulting difficulty (0 hard, 100 easy) to an example.

        Raises:
            ValueError: the truth is unknown.
        """

    def metrics(
        self, predictions: Sequence[Prediction], *, seed: int = 0, strict: bool = False
    ) -> dict[str, Any]:
        """Scores many predictions: metric -> value, and "ci95": metric -> [low, high].

        Args:
            predictions: at least one prediction; the truth of all has to be known.
            seed: seed of the bootstrap.
            strict: scores have to exceed thresholds; False: to reach them.

        Raises:
            ValueError: there is no prediction, or the truth of one is unknown.
        """

    def columns(self, example: GroundingExample, answer: ParsedAnswer) -> dict[str, Any]:
        """Returns table columns (JSON values) of the truth and of a parsed completion."""
