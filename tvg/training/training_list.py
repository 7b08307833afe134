"""The examples of a training, which may be chosen anew between epochs, and its place in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvg.data.order import ResumableLoader
from tvg.types import GroundingExample, Segment

Examples = Sequence[GroundingExample]


class TrainingList:
    """The examples of the training epochs, and how far training has come in them.

    Both stand in the checkpoint, whatever Lightning keeps of its loops: a run that is resumed in
    an epoch goes on with that epoch's examples.

    Args:
        first: gives the examples that the run starts from; they are what is chosen from.
    """

    def __init__(self, first: Callable[[], Examples]) -> None:
        self.first = first
        self.chosen: list[GroundingExample] | None = None  # None: the first examples
        self._loader: ResumableLoader | None = None
        self._place: dict[str, Any] = {}  # of the loader to come

    @property
    def examples(self) -> Examples:
        """The examples of the current epoch (between two, of the next one)."""
        return self.first() if self.chosen is None else self.chosen

    @property
    def epochs_done(self) -> int:
        """How many epochs have been shown to their end."""
        return int(self._now().get("epoch", 0))

    @property
    def is_between_epochs(self) -> bool:
        """Whether no batch of the current epoch is shown yet."""
        return not self._now().get("batches_done", 0)

    def replace(self, examples: Examples) -> None:
        """Shows other examples from the next epoch on; their loader has to be asked for anew.

        Raises:
            ValueError: there are none, or an epoch is in the middle.
        """
        if not examples:
            raise ValueError("the training list cannot be empty")
        if not self.is_between_epochs:
            raise ValueError(
                "the training list can change between two epochs only: "
                f"{self._now()['batches_done']} batches of this one are done"
            )
        self._place = {"epoch": self.epochs_done, "batches_done": 0}
        self._loader = None
        self.chosen = list(examples)

    def at_its_place(self, loader: ResumableLoader) -> ResumableLoader:
        """The loader of `examples`, taken to where training stands; its place is kept from here.

        Raises:
            ValueError: a checkpoint's place is of another order; names the key.
        """
        place = self._now()
        if place:
            loader.load_state_dict(place)
        self._loader = loader
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the place, and of each example chosen what may differ from the files."""
        chosen = None if self.chosen is None else [_told(example) for example in self.chosen]
        return {"place": self._now(), "chosen": chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state.

        Raises:
            ValueError: an example that was chosen is not among the first ones any more.
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
            f"data (its files, selection, limit_train): the run that is resumed trains on "
            f"{len(told)} examples, of which {len(missing)} are not there now, the first is "
            f"{missing[0]!r}"
        )
    return [
        replace(
            known[qid],
            difficulty=difficulty,
            prediction=None if prediction is None else Segment(*prediction),
        )
        for qid, difficulty, prediction in told
    ]
