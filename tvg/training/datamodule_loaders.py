"""Wrappers for data loaders and their batches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from tvg.data.dataset import LeftOut, Sample
from tvg.data.split_batches import SplitBatch, parts_of
from tvg.types import PromptBatch

log = logging.getLogger(__name__)

AnyBatch = PromptBatch | SplitBatch
Collate = Callable[[Sequence[Sample | LeftOut]], AnyBatch]


class Envelope:
    """Hides a batch from Lightning's precision plugins.

    The plugins would round every float tensor to the training precision, even frame rates.
    """

    def __init__(self, batch: AnyBatch) -> None:
        self.batch = batch


class EnvelopeCollator:
    """Wraps every batch of a collator in an envelope."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Sample | LeftOut]) -> Envelope:
        return Envelope(self.collate(items))


class UnreadableClips:
    """Counts the examples that workers could not use; logs each problem once.

    The clip of an unusable example cannot be read (`data.on_missing=skip`) or, in training, ends
    before the segment starts.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # problem -> number of occurrences

    def note(self, batch: AnyBatch) -> None:
        """Counts and logs a batch's problems; call it in the main process, once per batch."""
        for problem in (problem for part in parts_of(batch) for problem in part.unreadable):
            if problem not in self.counts:
                log.warning("example skipped: %s", problem)
            self.counts[problem] += 1


class EvalLoader(DataLoader[Any]):
    """A data loader that passes each batch to `note` before yielding it.

    Args:
        note: called in the main process.
        **options: options of `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Any, *, note: Callable[[AnyBatch], None], **options: Any) -> None:
        super().__init__(dataset, **options)
        self.note = note

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, AnyBatch):  # Lightning's hook notes enveloped batches
                self.note(batch)
            yield batch
