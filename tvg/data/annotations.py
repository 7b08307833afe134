"""Defines data sets: their annotation files by split, and mixtures of several sets."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tvg.core.limits import on_missing_problems, refuse
from tvg.data.readers.record import ReadResult, merge_reports
from tvg.types import GroundingExample

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
OnMissing = Literal["error", "skip"]
OUTSIDE_SHARE = "outside this epoch's share"  # why a mixture drops a query
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(kw_only=True, eq=False, repr=False)
class AnnotationFiles:
    """The annotation files, the reader and the video folder of one data set.

    Attributes:
        name: name of the data set, used in reports.
        reader: reads one annotation format; called with the annotation file and the video folder.
        world: generates the data, for a synthetic set; called by `prepare`. None for other sets.
        train_file, val_file, test_file: annotation files; None if the set has no such split.
        annotation_file: replaces the file of one split; None uses the files above.
        annotation_split: the split whose file is replaced. None chooses the split whose file has
            the same file name, in the order test, validation, training. If there is none, it
            chooses the set's first split, or "train" if the set has no files.
        video_dir: folder of the videos; None reads only the annotations.
        extensions: extensions of video files, tried in this order.
    """

    name: str
    reader: Callable[..., ReadResult]
    world: Callable[[], Any] | None
    train_file: str | None
    val_file: str | None
    test_file: str | None
    annotation_file: str | None
    annotation_split: Split | None
    video_dir: str | None
    extensions: Sequence[str]


@dataclass(kw_only=True, eq=False, repr=False)
class AnnotationSet(AnnotationFiles):
    """One data set: the annotation file for each of its splits, read on demand.

    Attributes:
        on_missing: "error" stops at missing videos; "skip" drops and counts their queries.
        files: annotation file of each split, after `annotation_file` has replaced one; None if the
            set has no such split.

    Raises:
        ValueError: `annotation_split` or `on_missing` has an unknown value.
    """

    on_missing: OnMissing
    files: dict[Split, str | None] = field(init=False)

    def __post_init__(self) -> None:
        if self.annotation_split is not None:
            _check_split("data.annotation_split", self.annotation_split)
        refuse(on_missing_problems(self.on_missing))
        self.extensions = tuple(self.extensions)
        self.files = {"train": self.train_file, "val": self.val_file, "test": self.test_file}
        if self.annotation_file is None:
            self.annotation_split = None
        else:
            split = self.annotation_split or split_of_file(self.annotation_file, self.files)
            self.files[split], self.annotation_split = self.annotation_file, split

    @classmethod
    def of(cls, files: AnnotationFiles, *, on_missing: OnMissing) -> AnnotationSet:
        """Returns the set of `files`."""
        settings = {f.name: getattr(files, f.name) for f in fields(AnnotationFiles)}
        return cls(**settings, on_missing=on_missing)

    def prepare(self) -> None:
        """Generates the synthetic data, if the set has any."""
        if self.world is not None:
            self.world()

    def read(self, split: Split, *, on_missing: OnMissing | None = None) -> ReadResult:
        """Reads a split. Defects are repaired in the training split and kept in the others.

        `on_missing` replaces the set's own setting, so that a report can read everything first.

        Raises:
            ValueError: the set has no such split, or the reader raises it.
        """
        _check_split("split", split)
        file = self.files[split]
        if file is None:
            raise ValueError(f"data.{split}_file: {self.name} has no {split} split")
        return self.reader(
            Path(file),
            Path(self.video_dir) if self.video_dir is not None else None,
            extensions=self.extensions,
            on_missing=on_missing or self.on_missing,
            clamp_ends=split == "train",
            drop_invalid=split == "train",
        )

    def read_whole(self, split: Split, *, on_missing: OnMissing | None = None) -> ReadResult:
        """Same as `read`, because an epoch of a single set contains each example once."""
        return self.read(split, on_missing=on_missing)

    def limited(
        self, examples: Sequence[GroundingExample], limit: int | None
    ) -> list[GroundingExample]:
        """Returns the first `limit` examples, or all if it is None."""
        return list(examples[:limit])


def split_of_file(annotation_file: str, files: Mapping[Split, str | None]) -> Split:
    """Returns the split that `annotation_file` replaces; see `AnnotationSet`."""
    # Test first: releases that validate on the test split use one file for both.
    for split in reversed(SPLITS):
        file = files[split]
        if file is not None and Path(file).name == Path(annotation_file).name:
            return split
    return next((split for split in SPLITS if files[split] is not None), "train")


def _check_split(key: str, split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"{key}: expected one of {', '.join(SPLITS)}, got {split!r}")


class MixedSets:
    """Reads several data sets as one. Ids become "set/id", and `extra["set"]` names the set.

    Args:
        sets: data sets by name.
        weights: for each set, how many times its examples occur in a training epoch. Validation and
            test ignore the weights and use every set that has the split once.
        seed: seed of the random subset that a fractional weight selects.

    Raises:
        ValueError: there are no sets, sets and weights have different names, a weight is negative
            or not finite, or no weight is above 0.
    """

    def __init__(
        self, *, sets: Mapping[str, AnnotationSet], weights: Mapping[str, float], seed: int
    ) -> None:
        _check_weights(sets, weights)
        self.sets = dict(sets)
        self.weights = {name: float(weights[name]) for name in sets}
        self.seed = seed
        self.name = " + ".join(sets)

    @property
    def files(self) -> dict[Split, str | None]:
        """The files of each split, joined by " + "; None if no set has the split."""
        return {
            split: " + ".join(str(s.files[split]) for s in self._having(split).values()) or None
            for split in SPLITS
        }

    def prepare(self) -> None:
        for annotation_set in self.sets.values():
            annotation_set.prepare()

    def read(self, split: Split, *, on_missing: OnMissing | None = None) -> ReadResult:
        """Reads a split of every set that has it; training examples are repeated by weight.

        `on_missing` replaces the setting of each set. The report counts each example once, however
        often it occurs in an epoch. Examples that a fractional weight leaves out count as dropped.

        Raises:
            ValueError: no set has the split, or a set's reader raises it.
        """
        whole = self.read_whole(split, on_missing=on_missing)
        if split != "train":
            return whole
        by_set: dict[str, list[GroundingExample]] = {name: [] for name in self._having(split)}
        for example in whole.examples:
            by_set[str(example.extra["set"])].append(example)
        examples: list[GroundingExample] = []
        outside: list[str] = []
        for name, named in by_set.items():
            weight = self.weights[name]
            chosen = repeat_by_weight(len(named), weight, self.seed)
            outside += [named[index].qid for index in sorted({*range(len(named))} - {*chosen})]
            log.info(
                "%s: %d examples, weight %g: %d in an epoch", name, len(named), weight, len(chosen)
            )
            examples += [named[index] for index in chosen]
        if not examples:
            raise ValueError(f"data.weights: no example is left in an epoch of {self.name}")
        whole.report.leave_out(OUTSIDE_SHARE, outside)
        return ReadResult(examples=examples, report=whole.report)

    def read_whole(self, split: Split, *, on_missing: OnMissing | None = None) -> ReadResult:
        """Reads a split of every set that has it, each example once.

        For training, sets of weight 0 are left out.

        Raises:
            ValueError: as in `read`.
        """
        _check_split("split", split)
        having = self._having(split)
        if not having:
            raise ValueError(f"data.sets: none of {', '.join(self.sets)} has a {split} split")
        results = {name: s.read(split, on_missing=on_missing) for name, s in having.items()}
        examples = [_named(e, name) for name, result in results.items() for e in result.examples]
        reports = {name: result.report for name, result in results.items()}
        return ReadResult(examples=examples, report=merge_reports(reports))

    def limited(
        self, examples: Sequence[GroundingExample], limit: int | None
    ) -> list[GroundingExample]:
        """Returns the first examples of every set, in proportion to the sets' sizes."""
        chosen = share_limit([str(example.extra["set"]) for example in examples], limit)
        return [examples[index] for index in chosen]

    def _having(self, split: Split) -> dict[str, AnnotationSet]:
        """Returns the sets that have a split; for training, only those with a weight above 0."""
        return {
            name: annotation_set
            for name, annotation_set in self.sets.items()
            if annotation_set.files[split] is not None
            and (split != "train" or self.weights[name] > 0)
        }


def repeat_by_weight(num: int, weight: float, seed: int) -> list[int]:
    """Returns the indices of `num` examples for one epoch, each repeated `weight` times.

    With a weight of 2.5, every index occurs twice, and a random half of them a third time. The
    number of extra indices is rounded, halves up. The indices ascend within each pass.
    """
    whole = math.floor(weight)
    rest = math.floor((weight - whole) * num + 0.5)
    return [*range(num)] * whole + sorted(random.Random(seed).sample(range(num), rest))


def share_limit(names: Sequence[str], limit: int | None) -> list[int]:
    """Returns at most `limit` ascending indices that keep each name's share of all examples.

    The first indices of each name are taken. Counts differ from exact shares by less than one.
    """
    if limit is None or limit >= len(names):
        return list(range(len(names)))
    totals = Counter(names)
    exact = {name: limit * total / len(names) for name, total in totals.items()}
    shares = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])  # stable
    for name in by_remainder[: limit - sum(shares.values())]:
        shares[name] += 1
    taken: Counter[str] = Counter()
    chosen = []
    for index, name in enumerate(names):
        if taken[name] < shares[name]:
            taken[name] += 1
            chosen.append(index)
    return chosen


def _named(example: GroundingExample, name: str) -> GroundingExample:
    return replace(example, qid=f"{name}/{example.qid}", extra={**example.extra, "set": name})


def _check_weights(sets: Mapping[str, AnnotationSet], weights: Mapping[str, float]) -> None:
    if not sets:
        raise ValueError("data.sets: expected at least one set, got none")
    for name, weight in weights.items():
        if name not in sets:
            raise ValueError(f"data.weights.{name}: no such set; expected one of {', '.join(sets)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"data.weights.{name}: expected 0 or more, got {weight}")
    for name in sets:
        if name not in weights:
            raise ValueError(f"data.weights.{name}: expected a weight for every set, got none")
    if not any(weight > 0 for weight in weights.values()):
        raise ValueError(f"data.weights: expected at least one above 0, got {dict(weights)}")
