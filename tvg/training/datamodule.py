"""Data modules that load prompts from one dataset or from several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvg.data.annotations import AnnotationFiles, AnnotationSet, MixedSets
from tvg.training.datamodule_base import PromptDataModule


@dataclass(kw_only=True, eq=False, repr=False)
class GroundingDataModule(AnnotationFiles, PromptDataModule):
    """Prompts of one data set; has the keys of `AnnotationFiles` and of `PromptDataModule`.

    Raises:
        ValueError: see `PromptDataModule` and `AnnotationSet`.
    """

    name: str

    def _make_source(self) -> AnnotationSet:
        return AnnotationSet.of(self, on_missing=self.on_missing)


@dataclass(kw_only=True, eq=False, repr=False)
class MixedDataModule(PromptDataModule):
    """Prompts of a mixture of data sets.

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
