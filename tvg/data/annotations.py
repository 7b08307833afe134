"""The annotation files of a data set by split, and mixtures of several sets."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from tvg.data.readers.record import ReadResult, merge_reports
from tvg.types import GroundingExample

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
OnMissing = Literal["error", "skip"]
OUTSIDE_SHARE = "outside this epoch's share"  # a mixture's reason to leave a query out
SPLITS: tuple[Split, ...] = get_args(Split)


class AnnotationSet:
    """One data set: which file holds which split, and how the files are read.

    Args:
        name: of the data set, for reports.
        reader: given annotation file and video folder, reads one format.
        world: writes the data where it is to be generated; called by `prepare`.
        train_file, val_file, test_file: annotation files; None where the set has no such split.
        annotation_file: replaces the file of one split; None: the files as above.
        annotation_split: that split; None: the one whose file has the same file name (the test
            split before the validation split before the training split), else the first that the
            set has, which is "train" where it has none.
        video_dir: folder with the videos; None: only the annotations are read.
        extensions: of video files, tried in this order.
        on_missing: "error" stops at missing videos, "skip" drops their queries and counts.

    Raises:
        ValueError: `annotation_split` or `on_missing` is none of those named here.
    """

    def __init__(
        self,
        *,
        name: str,
        reader: Callable[..., ReadResult],
        world: Callable[[], Any] | None,
        train_file: str | None,
        val_file: str | None,
        test_file: str | None,
        annotation_file: str | None,
        annotation_split: Split | None,
        video_dir: str | None,
        extensions: Sequence[str],
        on_missing: OnMissing,
    ) -> None:
        if annotation_split is not None:
            _check_split("data.annotation_split", annotation_split)
        if on_missing not in ("error", "skip"):
            raise ValueError(f"data.on_missing: expected 'error' or 'skip', got {on_missing!r}")
        self.name = name
        self.reader = reader
        self.world = world
        self.files: dict[Split, str | None] = {
            "train": train_file,
            "val": val_file,
            "test": test_file,
        }
        self.annotation_split: Split | None = None  # the split that `annotation_file` is read as
        if annotation_file is not None:
            self.annotation_split = annotation_split or split_of_file(annotation_file, self.files)
            self.files[self.annotation_split] = annotation_file
        self.video_dir = video_dir
        self.extensions = tuple(extensions)
        self.on_missing: OnMissing = on_missing

    def prepare(self) -> None:
        """Draws the world, where there is one."""
        if self.world is not None:
            self.world()

    def read(self, split: Split, *, on_missing: OnMissing | None = None) -> ReadResult:
        """Reads a split; defects are repaired for training, left as published for benchmarks.

        `on_missing` replaces the set's own: a report goes through everything first.

        Raises:
            ValueError: there is no such split, or what the reader raises.
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
        """The same as `read`: an epoch holds each example once."""
        return self.read(split, on_missing=on_missing)

    def limited(
        self, examples: Sequence[GroundingExample], limit: int | None
    ) -> list[GroundingExample]:
        """Returns the first examples."""
        return list(examples[:limit])


def split_of_file(annotation_file: str, files: Mapping[Split, str | None]) -> Split:
    """Returns the split that a file given by hand stands for; see `AnnotationSet`."""
    # Test first: releases whose "val" is the test split serve both from one file.
    for split in reversed(SPLITS):
        file = files[split]
        if file is not None and Path(file).name == Path(annotation_file).name:
            return split
    return next((split for split in SPLITS if files[split] is not None), "train")


def _check_split(key: str, split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"{key}: expected one of {', '.join(SPLITS)}, got {split!r}")


class MixedSets:
    """Several data sets read as one; ids become "set/id", and `extra["set"]` names the set.

    Args:
        sets: by name.
        weights: how many times a set's examples stand in a training epoch; of each set. Validation
            and test serve every set that has the split once, whatever the weights.
        seed: of the part that a fraction takes.

    Raises:
        ValueError: no sets, a weight without its set or a set without its weight, a negative
            weight, or none above 0.
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
        """The files of each split, joined by " + "; None where no set has it."""
        return {
            split: " + ".join(str(s.files[split]) for s in self._having(split).values()) or None
            for split in SPLITS
        }

    def prepare(self) -> None:
        for annotation_set in self.sets.values():
            annotation_set.prepare()

    def read(self, split: Split, *, on_missing: OnMissing | None = None) -> ReadResult:
        """Reads a split of every set that has it; in training, as often as its weight says.

        `on_missing` replaces that of each set. The report counts each example once,
        however often it occurs in an epoch; what is outside a fraction's share counts as dropped.

        Raises:
            ValueError: no set has the split, or what a set's reader raises.
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
            raise ValueError(f"data.weights: they leave no example of {self.name} in an epoch")
        whole.report.leave_out(OUTSIDE_SHARE, outside)
        return ReadResult(examples=examples, report=whole.report)

    def read_whole(self, split: Split, *, on_missing: OnMissing | None = None) -> ReadResult:
        """Reads a split of every set that has it, each example once (none of a set of weight 0).

        Raises:
            ValueError: as `read`.
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
        """Returns the first examples of every set, so that each has its share of the limit."""
        chosen = share_limit([str(example.extra["set"]) for example in examples], limit)
        return [examples[index] for index in chosen]

    def _having(self, split: Split) -> dict[str, AnnotationSet]:
        """The sets that have a split; in training only those whose weight is above 0."""
        return {
            name: annotation_set
            for name, annotation_set in self.sets.items()
            if annotation_set.files[split] is not None
            and (split != "train" or self.weights[name] > 0)
        }


def repeat_by_weight(num: int, weight: float, seed: int) -> list[int]:
    """Returns which of `num` examples stand in an epoch: each index `weight` times.

    2.5 gives every index twice and then a random half (rounded, a half up) a third time; every
    round ascends.
    """
    whole = math.floor(weight)
    rest = math.floor((weight - whole) * num + 0.5)
    return [*range(num)] * whole + sorted(random.Random(seed).sample(range(num), rest))


def share_limit(names: Sequence[str], limit: int | None) -> list[int]:
    """Returns at most `limit` indices, ascending, so that every name has the share it has in all.

    Of a name the first are taken; the shares differ from exact ones by less than one.
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
            raise ValueError(f"data.weights.{name}: no such set; there are {', '.join(sets)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"data.weights.{name}: expected 0 or more, got {weight}")
    for name in sets:
        if name not in weights:
            raise ValueError(f"data.weights.{name}: expected a weight for every set, got none")
    if not any(weight > 0 for weight in weights.values()):
        raise ValueError(f"data.weights: expected one above 0, got {dict(weights)}")
