"""Every dataset as loaders of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvg.data.annotations import AnnotationSet, MixedSets, Split
from tvg.data.readers.record import ReadResult
from tvg.training.datamodule_base import PromptDataModule


@dataclass(kw_only=True, eq=False, repr=False)
class GroundingDataModule(PromptDataModule):
    """Prompts of one data set; its keys beside those of `PromptDataModule` are `AnnotationSet`'s.

    Raises:
        ValueError: as `PromptDataModule` and `AnnotationSet`.
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
        sets: by name; each, given `on_missing`, makes a set.
        weights: how many times a set's examples stand in a training epoch, by its name.
        mix_seed: of the part that a fraction takes: the same for every `seed` of a run.

    Raises:
        ValueError: as `PromptDataModule` and `MixedSets`.
    """

    sets: Mapping[str, Callable[..., AnnotationSet]]
    weights: Mapping[str, float]
    mix_seed: int

    def _make_source(self) -> MixedSets:
        sets = {name: make(on_missing=self.on_missing) for name, make in self.sets.items()}
        return MixedSets(sets=sets, weights=self.weights, seed=self.mix_seed)
