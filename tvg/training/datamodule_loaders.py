"""Wrappers of data loaders."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from tvg.data.dataset import LeftOut, Sample
from tvg.types import PromptBatch

log = logging.getLogger(__name__)

Collate = Callable[[Sequence[Sample | LeftOut]], PromptBatch]


class Envelope:
    """Carries a batch past Lightning's precision plugins, which it would not survive.

    They round every float tensor to the training precision: the frame rates, too.
    """

    def __init__(self, batch: PromptBatch) -> None:
        self.batch = batch


class EnvelopeCollator:
    """Puts every batch of a collator into an envelope."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Sample | LeftOut]) -> Envelope:
        return Envelope(self.collate(items))


class UnreadableClips:
    """Counts what workers could not use; each is named in the log once.

    Clips that cannot be read (`data.on_missing=skip`) and, in training, segments after the end.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # problem -> how often an example was passed over

    def note(self, batch: PromptBatch) -> None:
        """To be called in the main process, once a batch."""
        for problem in batch.unreadable:
            if problem not in self.counts:
                log.warning("passed over: %s", problem)
            self.counts[problem] += 1


class EvalLoader(DataLoader[Any]):
    """A data loader that shows each batch to `note` before it hands it out.

    Args:
        note: called in the main process.
        **options: of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self, dataset: Any, *, note: Callable[[PromptBatch], None], **options: Any
    ) -> None:
        super().__init__(dataset, **options)
        self.note = note

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, PromptBatch):  # in an envelope, Lightning's hook notes it
                self.note(batch)
            yield batch
