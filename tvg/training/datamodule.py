"""Data modules that load prompts from one dataset or from several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvg.data.annotations import AnnotationSet, MixedSets, Split
from tvg.data.readers.record import ReadResult
from tvg.training.datamodule_base import PromptDataModule


@dataclass(kw_only=True, eq=False, repr=False)
class GroundingDataModule(PromptDataModule):
    """Prompts of one data set; adds the keys of `AnnotationSet` to those of `PromptDataModule`.

    Raises:
        ValueError: see `PromptDataModule` and `AnnotationSet`.
    """

    reader: Callable[..., ReadResult]
    world: Callable[[], Any] | None
    train_file: str | None
    val_file: str | None
    test_file: str | None
    annotation_file: str | None
    annotation_split: Split | None
    video_dir: str | None
    extensions: Sequence[str]

    def _make_source(self) -> AnnotationSet:
        return AnnotationSet(
            name=self.name,
            reader=self.reader,
            world=self.world,
            train_file=self.train_file,
            val_file=self.val_file,
            test_file=self.test_file,
            annotation_file=self.annotation_file,
            annotation_split=self.annotation_split,
            video_dir=self.video_dir,
            extensions=self.extensions,
            on_missing=self.on_missing,
        )


@dataclass(kw_only=True, eq=False, repr=False)
class MixedDataModule(PromptDataModule):
    """Prompts of several data sets at once.

    Attributes:
        sets: factories by name; each is called with `on_missing` and returns a set.
        weights: how many times the examples of a set appear in a training epoch, by set name.
        mix_seed: seed of the random subset that a fractional weight selects; independent of the
            run's `seed`.

    Raises:
        ValueError: see `PromptDataModule` and `MixedSets`.
    """

    sets: Mapping[str, Callable[..., AnnotationSet]]
    weights: Mapping[str, float]
    mix_seed: int

    def _make_source(self) -> MixedSets:
        sets = {name: make(on_missing=self.on_missing) for name, make in self.sets.items()}
        return MixedSets(sets=sets, weights=self.weights, seed=self.mix_seed)
