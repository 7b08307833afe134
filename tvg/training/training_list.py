"""Stores the training examples, which may change between epochs, and the position in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvg.data.order import ResumableLoader
from tvg.types import GroundingExample, Segment

Examples = Sequence[GroundingExample]


class TrainingList:
    """The examples of the training epochs, and the current position in them.

    Both are saved in the checkpoint, independently of Lightning's loops. A run that is resumed
    within an epoch continues with that epoch's examples.

    Args:
        first: returns the examples that the run starts from; later lists choose from these.
    """

    def __init__(self, first: Callable[[], Examples]) -> None:
        self.first = first
        self.chosen: list[GroundingExample] | None = None  # None: the first examples
        self._loader: ResumableLoader | None = None
        self._place: dict[str, Any] = {}  # position of the next loader

    @property
    def examples(self) -> Examples:
        """The examples of the current epoch or, between two epochs, of the next epoch."""
        return self.first() if self.chosen is None else self.chosen

    @property
    def epochs_done(self) -> int:
        """Number of completed epochs."""
        return int(self._now().get("epoch", 0))

    @property
    def is_between_epochs(self) -> bool:
        """True if no batch of the current epoch has been processed yet."""
        return not self._now().get("batches_done", 0)

    def replace(self, examples: Examples) -> None:
        """Replaces the examples from the next epoch on; request a new loader afterwards.

        Raises:
            ValueError: `examples` is empty, or an epoch is in progress.
        """
        if not examples:
            raise ValueError("the training list cannot be empty")
        if not self.is_between_epochs:
            raise ValueError(
                "the training list can change only between two epochs: "
                f"{self._now()['batches_done']} batches of this epoch are done"
            )
        self._place = {"epoch": self.epochs_done, "batches_done": 0}
        self._loader = None
        self.chosen = list(examples)

    def at_its_place(self, loader: ResumableLoader) -> ResumableLoader:
        """Moves a loader of `examples` to the current position, which the loader then tracks.

        Raises:
            ValueError: the position belongs to another order of batches; the message names the key.
        """
        place = self._now()
        if place:
            loader.load_state_dict(place)
        self._loader = loader
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, and id, difficulty and prediction of each chosen example."""
        chosen = None if self.chosen is None else [_told(example) for example in self.chosen]
        return {"place": self._now(), "chosen": chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state.

        Raises:
            ValueError: a chosen example is no longer among the first examples.
        """
        self._place, self._loader = dict(state["place"]), None
        self.chosen = None
        if state["chosen"] is not None:
            self.chosen = _retold(self.first(), state["chosen"])

    def _now(self) -> dict[str, Any]:
        return self._place if self._loader is None else self._loader.state_dict()


def _told(example: GroundingExample) -> list[Any]:
    prediction = example.prediction
    return [example.qid, example.difficulty, None if prediction is None else list(prediction)]


def _retold(first: Examples, told: list[list[Any]]) -> list[GroundingExample]:
    known = {example.qid: example for example in first}
    missing = [qid for qid, _, _ in told if qid not in known]
    if missing:
        raise ValueError(
            f"data (its files, selection, limit_train): {len(missing)} of the {len(told)} training "
            f"examples of the resumed run are missing, e.g. {missing[0]!r}"
        )
    return [
        replace(
            known[qid],
            difficulty=difficulty,
            prediction=None if prediction is None else Segment(*prediction),
        )
        for qid, difficulty, prediction in told
    ]
