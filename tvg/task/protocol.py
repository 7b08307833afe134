"""The interface of a task: what the policy is asked, how answers are read, and how they score.

Training, evaluation, callbacks and records know tasks only through this interface. To add a task,
write one class with these members and one YAML in `conf/prompt` that builds it.
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
        prefill: text after the generation prompt that every completion continues; None: none.
        frame_times: text of a time, with one field `time_s`, written before the frames of that
            time; None: times are given in the default way of the model's family.
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
        """The query of an example as the prompt shows it."""

    def messages(self, example: GroundingExample) -> list[dict[str, Any]]:
        """Chat turns in Hugging Face's format, with one video placeholder."""

    def target(self, example: GroundingExample) -> str:
        """The completion that supervised training teaches.

        Raises:
            ValueError: the example has no label, or the task has no supervised target.
        """

    def typical_target(self) -> str | None:
        """A target such as training sees; None if the task has no supervised target."""

    def parse(self, text: str) -> ParsedAnswer:
        """Reads a completion as the rewards see it; unreadable text is no error."""

    def is_parsed(self, answer: ParsedAnswer) -> bool:
        """Whether a parsed completion holds an answer to the task."""

    def has_exact_format(self, text: str) -> bool:
        """Whether a completion has exactly the requested format."""

    def predict(self, example: GroundingExample, text: str, *, duration_s: float) -> Prediction:
        """Reads a completion as an answer to be scored, and scores it if the truth is known.

        Args:
            example: the example that was asked.
            text: the completion.
            duration_s: length of the clip.
        """

    def rate(self, example: GroundingExample, prediction: Prediction) -> GroundingExample:
        """Returns the example with the difficulty that a prediction shows (0 hard, 100 easy).

        Raises:
            ValueError: the truth is unknown.
        """

    def metrics(
        self, predictions: Sequence[Prediction], *, seed: int = 0, strict: bool = False
    ) -> dict[str, Any]:
        """Scores many predictions: metric -> value, and "ci95": metric -> [low, high].

        Args:
            predictions: at least one; all with a known truth.
            seed: seed of the bootstrap.
            strict: thresholds have to be exceeded, not only reached.

        Raises:
            ValueError: there is no prediction, or the truth of one is unknown.
        """

    def columns(self, example: GroundingExample, answer: ParsedAnswer) -> dict[str, Any]:
        """Table columns of the truth and of a parsed completion: JSON values."""
