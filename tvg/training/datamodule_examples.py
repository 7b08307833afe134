"""Reads, selects, pads and counts the examples of a data module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

from lightning.pytorch import LightningDataModule

from tvg.data.annotations import AnnotationSet, MixedSets, Split
from tvg.data.query_text import UNUSABLE_QUERY, query_problem
from tvg.data.readers.record import ReadError, ReadReport, ReadResult
from tvg.training.evaluation import coverage
from tvg.types import GroundingExample

log = logging.getLogger(__name__)

NOT_SELECTED = "not selected"  # a reason in `ReadReport.dropped`
Examples = Sequence[GroundingExample]


@dataclass(kw_only=True, eq=False, repr=False)
class ExamplesDataModule(LightningDataModule):
    """Provides the examples of annotation files; subclasses choose the files (`_make_source`).

    Attributes:
        name: name of the data in reports.
        on_missing: action for a video that is missing or cannot be read. "error" stops; "skip"
            leaves the video out, counts it and reports its name. In training, an example that fails
            while batches are made is replaced by the next example.
        selection: chooses the training examples.
        padding: adds lead-ins (filler frames) before clips, in any split.
        max_query_chars: longest query accepted; None for no limit. A longer query, or one that is
            not valid Unicode, is refused or left out, depending on `on_missing`.
        limit_train, limit_val, limit_test: maximum number of examples, taken from the start (in a
            mixture, from every set in proportion to its size); None for all.

    Raises:
        ValueError: a limit is too small, or `on_missing` is unknown; the message names the key.
    """

    name: str
    on_missing: Literal["error", "skip"]
    selection: Callable[[Examples], list[GroundingExample]]
    padding: Callable[[Examples], list[GroundingExample]]
    limit_train: int | None
    limit_val: int | None
    limit_test: int | None
    max_query_chars: int | None = None
    source: AnnotationSet | MixedSets = field(init=False)

    def __post_init__(self) -> None:
        super().__init__()
        check_counts(least=1, **{f"limit_{split}": n for split, n in self._limits.items()})
        self.source = self._make_source()
        self._examples: dict[Split, list[GroundingExample]] = {}
        self._read: dict[Split, tuple[ReadReport, int]] = {}  # report and number of examples

    def _make_source(self) -> AnnotationSet | MixedSets:
        raise NotImplementedError

    @property
    def _limits(self) -> dict[Split, int | None]:
        return {"train": self.limit_train, "val": self.limit_val, "test": self.limit_test}

    def prepare_data(self) -> None:
        self.source.prepare()

    def read(self, split: Split) -> ReadResult:
        """Reads a split, applies the selection (training only) and the padding.

        Defects are repaired in the training split and kept as published in the others.

        Raises:
            ValueError: there is no such split, or none of its examples is usable.
        """
        result = self._without_unusable_queries(self.source.read(split))
        examples, report = result.examples, result.report
        if split == "train":
            examples = self.selection(examples)
            report = _without_unselected(report, result.examples, examples)
        return ReadResult(examples=self.padding(examples), report=report)

    def read_whole(self, split: Split) -> list[GroundingExample]:
        """Returns every example of a split once, for any weights of a mixture.

        This is used to check all examples that a run with other weights could show. In the training
        split, the selection is applied to all examples.
        """
        examples = self._without_unusable_queries(self.source.read_whole(split)).examples
        return self.padding(self.selection(examples) if split == "train" else examples)

    def asked_query(self, example: GroundingExample) -> str:
        """Returns the query as in the prompt; without a task, as read, without outer whitespace."""
        return example.query

    def query_problem(self, example: GroundingExample) -> str | None:
        """Returns a description of the problem of a query; None if it is usable."""
        return query_problem(self.asked_query(example), max_chars=self.max_query_chars)

    def _without_unusable_queries(self, result: ReadResult) -> ReadResult:
        """Leaves out unusable queries or refuses them, before the run starts."""
        problems = {e.qid: p for e in result.examples if (p := self.query_problem(e)) is not None}
        if not problems:
            return result
        report = deepcopy(result.report)
        for qid in problems:
            report.add(UNUSABLE_QUERY, qid, "skipped")
        report.leave_out(UNUSABLE_QUERY, problems)
        report.unusable_queries = problems
        qid, problem = next(iter(problems.items()))
        first = f"{report.annotation_file}: {qid}: {problem}"
        if self.on_missing == "error":
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ReadError(f"{first}{more}; data.on_missing=skip leaves such queries out", report)
        examples = [e for e in result.examples if e.qid not in problems]
        if not examples:
            raise ReadError(f"{first}: no example is left.\n{report}", report)
        return ReadResult(examples=examples, report=report)

    def examples(self, split: Split) -> list[GroundingExample]:
        """Returns the examples of a split up to its limit; reads them once, with `read`."""
        if split not in self._examples:
            result = self.read(split)
            log.info("%s, %s split: %s", self.name, split, result.report)
            if NOT_SELECTED in result.report.dropped:
                num_left_out = result.report.dropped[NOT_SELECTED]
                log.info("selected %d, left out %d", len(result.examples), num_left_out)
            self._read[split] = result.report, len(result.examples)
            limit = self._limits[split]
            self._examples[split] = self.source.limited(result.examples, limit)
        return self._examples[split]

    def coverage(self, split: Split, *, num_scored: int) -> dict[str, int]:
        """Counts the queries of a split, and the queries that are not scored, by reason."""
        num_asked = len(self.examples(split))
        report, num_usable = self._read[split]
        return coverage(report, num_usable=num_usable, num_asked=num_asked, num_scored=num_scored)


def _without_unselected(report: ReadReport, before: Examples, after: Examples) -> ReadReport:
    """Returns the report with the unselected queries; repeated queries of a mixture count once."""
    report = deepcopy(report)
    report.leave_out(NOT_SELECTED, {e.qid for e in before} - {e.qid for e in after})
    return report


def check_counts(*, least: int, **counts: int | None) -> None:
    """Raises a ValueError that names the key of a count below `least`; None means no limit."""
    for name, count in counts.items():
        if count is not None and count < least:
            raise ValueError(f"data.{name}: expected at least {least}, got {count}")
