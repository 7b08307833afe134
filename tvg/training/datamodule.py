"""Every dataset as loaders of prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from tvg.data.clip import ClipLoader
from tvg.data.collate import PromptCollator
from tvg.data.dataset import GroundingDataset, Sample
from tvg.data.decode import VideoDecoder
from tvg.data.order import BatchOrder, ResumableLoader
from tvg.data.readers import ReadResult
from tvg.task.grounding import GroundingTask
from tvg.types import GroundingExample, PromptBatch

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]


class Envelope:
    """Carries a batch past Lightning's precision plugins, which it would not survive.

    They round every float tensor to the training precision: the frame rates, too.
    """

    def __init__(self, batch: PromptBatch) -> None:
        self.batch = batch


class _EnvelopeCollator:
    def __init__(self, collate: Callable[[Sequence[Sample]], PromptBatch]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Sample]) -> Envelope:
        return Envelope(self.collate(samples))


class GroundingDataModule(LightningDataModule):
    """Reads annotation files and serves batches of prompts; one batch is one optimizer step.

    Args:
        name: of the data set, for reports.
        reader: given annotation file and video folder, reads one format.
        world: writes the data where it is to be generated; called once, before anything is read.
        train_file, val_file, test_file: annotation files; None where the set has no such split.
        video_dir: folder with the videos.
        on_missing: "error" stops at the first missing video, "skip" drops its queries and counts.
        loader: given a decoder, makes what samples, decodes and resizes clips.
        decoder: reads video files.
        batch_size: prompts an optimizer step and rank.
        eval_batch_size: prompts a batch in validation and evaluation.
        num_workers: decoding processes; 0 decodes in the training process.
        shuffle: a new order each epoch; False keeps the file's order.
        memory_cache: keep decoded clips in memory (small data sets).
        max_prompt_tokens: longest prompt accepted; None for no limit.
        limit_train, limit_val, limit_test: use only the first so many examples; None for all.
        task: what is asked; None where only annotations and files are looked at.
        processor: tokenizer, video processor and chat template; None likewise.
        seed: of the shuffle.

    Raises:
        ValueError: a count is too small; names its key.
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
        video_dir: str | None,
        on_missing: Literal["error", "skip"],
        loader: Callable[..., ClipLoader],
        decoder: VideoDecoder,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        shuffle: bool,
        memory_cache: bool,
        max_prompt_tokens: int | None,
        limit_train: int | None,
        limit_val: int | None,
        limit_test: int | None,
        task: GroundingTask | None,
        processor: Any | None,
        seed: int,
    ) -> None:
        super().__init__()
        _check_counts(
            least=1,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            limit_train=limit_train,
            limit_val=limit_val,
            limit_test=limit_test,
        )
        _check_counts(least=0, num_workers=num_workers)
        self.dataset_name = name
        self.reader = reader
        self.world = world
        self.files: dict[str, str | None] = {
            "train": train_file,
            "val": val_file,
            "test": test_file,
        }
        self.limits = {"train": limit_train, "val": limit_val, "test": limit_test}
        self.video_dir = video_dir
        self.on_missing: Literal["error", "skip"] = on_missing
        self.loader = loader(decoder=decoder)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.shuffle = shuffle
        self.memory_cache = memory_cache
        self.collator = None
        if task is not None and processor is not None:
            self.collator = PromptCollator(
                task=task, processor=processor, max_prompt_tokens=max_prompt_tokens
            )
        self.seed = seed
        self._examples: dict[str, list[GroundingExample]] = {}
        self._datasets: dict[str, GroundingDataset] = {}

    def prepare_data(self) -> None:
        if self.world is not None:
            self.world()

    def read(self, split: Split) -> ReadResult:
        """Reads a split; defects are repaired for training, left as published for benchmarks.

        Raises:
            ValueError: there is no such split, or none of its examples is usable.
        """
        if split not in self.files:
            raise ValueError(f"split: expected one of {', '.join(self.files)}, got {split!r}")
        file = self.files[split]
        if file is None:
            raise ValueError(f"data.{split}_file: {self.dataset_name} has no {split} split")
        return self.reader(
            Path(file),
            Path(self.video_dir) if self.video_dir is not None else None,
            on_missing=self.on_missing,
            clamp_ends=split == "train",
            drop_invalid=split == "train",
        )

    def examples(self, split: Split) -> list[GroundingExample]:
        """The examples of a split, read once; what `read` raises."""
        if split not in self._examples:
            result = self.read(split)
            log.info("%s, %s split: %s", self.dataset_name, split, result.report)
            self._examples[split] = result.examples[: self.limits[split]]
        return self._examples[split]

    def train_dataloader(self) -> ResumableLoader:
        world_size, rank = self._ranks()
        order = BatchOrder(
            num_examples=len(self.examples("train")),
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        options = self._loader_options(enveloped=True)
        return ResumableLoader(self._dataset("train"), order=order, **options)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch.batch if isinstance(batch, Envelope) else batch

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Validation batches; an empty list, which validates nothing, where there is no split."""
        return [] if self.files["val"] is None else self.eval_loader("val", enveloped=True)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader("test", enveloped=True)

    def eval_loader(
        self, split: Split, *, skip: int = 0, enveloped: bool = False
    ) -> DataLoader[Any]:
        """Batches of this rank's share in the file's order, its first `skip` examples left out.

        `enveloped` is for loaders that Lightning's trainer reads; see `Envelope`.
        """
        world_size, rank = self._ranks()
        order = BatchOrder(
            num_examples=len(self.examples(split)),
            batch_size=self.eval_batch_size,
            shuffle=False,
            seed=0,
            rank=rank,
            world_size=world_size,
        )
        mine = [index for batch in order for index in batch][skip:]
        size = self.eval_batch_size
        batches = [mine[i : i + size] for i in range(0, len(mine), size)]
        options = self._loader_options(enveloped=enveloped)
        return DataLoader(self._dataset(split), batch_sampler=batches, **options)

    def _dataset(self, split: Split) -> GroundingDataset:
        if split not in self._datasets:
            self._datasets[split] = GroundingDataset(
                examples=self.examples(split), loader=self.loader, memory_cache=self.memory_cache
            )
        return self._datasets[split]

    def _loader_options(self, *, enveloped: bool) -> dict[str, Any]:
        assert self.collator is not None, "batches need a task and a processor"
        collate = _EnvelopeCollator(self.collator) if enveloped else self.collator
        options: dict[str, Any] = {"collate_fn": collate, "num_workers": self.num_workers}
        if self.num_workers > 0:
            # Decoders and the tokenizer hold threads, which do not survive a fork.
            options |= {"multiprocessing_context": "spawn", "prefetch_factor": 2}
            options["persistent_workers"] = True  # starting one costs seconds of imports
        return options

    def _ranks(self) -> tuple[int, int]:
        trainer = getattr(self, "trainer", None)
        return (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)


def _check_counts(*, least: int, **counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < least:
            raise ValueError(f"data.{name}: expected at least {least}, got {count}")
