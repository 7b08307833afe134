"""Base class of all data modules: builds the loaders of prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from tvg.core.worker_process import WORKERS
from tvg.data.annotations import SPLITS, Split
from tvg.data.chat_template import DEFAULT_LIMITS, TemplateLimits
from tvg.data.collate import PromptCollator
from tvg.data.dataset import ClipSource, GroundingDataset, OnUnreadable
from tvg.data.order import BatchOrder, ResumableLoader
from tvg.data.split_batches import SplitCollator
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder
from tvg.model.families import Family
from tvg.task.protocol import Task
from tvg.training.datamodule_examples import Examples, ExamplesDataModule, check_counts
from tvg.training.datamodule_loaders import (
    Collate,
    Envelope,
    EnvelopeCollator,
    EvalLoader,
    UnreadableClips,
)
from tvg.training.training_list import TrainingList
from tvg.types import GroundingExample

ALL = slice(None)


@dataclass(kw_only=True, eq=False, repr=False)
class PromptDataModule(ExamplesDataModule):
    """Batches of prompts from annotated videos; a training batch is usually one step.

    The fields of this class and of `ExamplesDataModule` are the keys of `conf/data/*.yaml`.

    Attributes:
        decoder: reads video files.
        clip: called with the decoder; returns the loader that samples, decodes and resizes clips.
        cache: called with that loader; returns the source of clips, which may cache them on disk.
        batch_size: prompts per optimizer step and rank.
        eval_batch_size: prompts per batch in validation and evaluation.
        eval_batch_tokens: such a batch is split so that its parts have at most this number of
            prompt tokens, padding included; None: it is not split.
        num_workers: number of decoding processes; 0 decodes in the training process.
        shuffle: use a new order each epoch; False keeps the order of the examples (a curriculum).
        memory_cache: keep decoded clips in memory (for small data sets).
        max_prompt_tokens: longest prompt accepted; None for no limit.
        use_windows: False trains on full videos, as Time-R1 does, even if an example has a window.
            Segments still count from the window's start.
        task: builds the prompts; None if only annotations and files are inspected.
        processor: tokenizer, video processor and chat template; None if `task` is None.
        family: the model's family; None if `task` is None.
        seed: seed of the shuffle.
        template_limits: time and memory limits of the checkpoint's chat template.
        uint8_pixels: send patches to the device as bytes and normalise them there; see
            `PromptCollator`.
        keep_frames: keep the frames for a rollout engine that processes clips; see
            `PromptCollator`.

    Raises:
        ValueError: a count is too small; see also `ExamplesDataModule`. The message names the key.
    """

    decoder: VideoDecoder
    clip: Callable[..., ClipLoader]
    cache: Callable[..., ClipSource]
    batch_size: int
    eval_batch_size: int
    num_workers: int
    shuffle: bool
    memory_cache: bool
    max_prompt_tokens: int | None
    use_windows: bool
    task: Task | None
    processor: Any | None
    family: Family | None
    seed: int
    eval_batch_tokens: int | None = None
    template_limits: TemplateLimits = DEFAULT_LIMITS
    uint8_pixels: bool = False
    keep_frames: bool = False
    clips: ClipSource = field(init=False)  # source of the clips in batches
    unreadable: UnreadableClips = field(init=False)  # collected from batches
    training: TrainingList = field(init=False)  # examples of the training epochs

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(
            least=1,
            batch_size=self.batch_size,
            eval_batch_size=self.eval_batch_size,
            eval_batch_tokens=self.eval_batch_tokens,
        )
        check_counts(least=0, num_workers=self.num_workers)
        self.clips = self.cache(loader=self.clip(decoder=self.decoder))
        self.unreadable = UnreadableClips()
        self.training = TrainingList(partial(self.examples, "train"))
        self.collator = None
        if self.task is not None and self.processor is not None:
            assert self.family is not None, "batches need the model's family"
            self.collator = PromptCollator(
                task=self.task,
                processor=self.processor,
                family=self.family,
                max_prompt_tokens=self.max_prompt_tokens,
                template_limits=self.template_limits,
                keep_frames=self.keep_frames,
                uint8_pixels=self.uint8_pixels,
            )
        self._datasets: dict[str, tuple[Examples, GroundingDataset]] = {}

    def asked_query(self, example: GroundingExample) -> str:
        if self.task is None:
            return super().asked_query(example)
        return self.task.asked_query(example)

    def query_problem(self, example: GroundingExample) -> str | None:
        problem = super().query_problem(example)
        if problem is None and self.collator is not None:
            problem = self.collator.query_problem(example)
        return problem

    # -- loaders --------------------------------------------------------------------------------

    def train_dataloader(self) -> ResumableLoader:
        """Returns the batches of the training list, from the current position of training."""
        order = self._train_order(len(self.training.examples))
        options = self._loader_options(enveloped=True)
        examples = self.training.examples
        if not self.use_windows:
            examples = [replace(example, window=None) for example in examples]
        dataset = self._dataset("train", examples, scored=False)
        return self.training.at_its_place(ResumableLoader(dataset, order=order, **options))

    @property
    def num_first_batches(self) -> int:
        """Number of batches per epoch of the examples that a run starts from."""
        return len(self._train_order(len(self.examples("train"))))

    def _train_order(self, num_examples: int) -> BatchOrder:
        world_size, rank = self._ranks()
        return BatchOrder(
            num_examples=num_examples,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )

    def replace_train_examples(self, examples: Examples) -> None:
        """Replaces the examples from the next epoch on; call `train_dataloader` again afterwards.

        Raises:
            ValueError: `examples` is empty, or an epoch is in progress.
        """
        self.training.replace(examples)

    def state_dict(self) -> dict[str, Any]:
        return self.training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.training.load_state_dict(state_dict)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not isinstance(batch, Envelope):
            return batch
        self.unreadable.note(batch.batch)
        return batch.batch

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Returns validation batches; an empty list if there is no validation split."""
        has_split = self.source.files["val"] is not None
        return self.eval_loader("val", enveloped=True) if has_split else []

    def test_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader("test", enveloped=True)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Returns the batches of the last available split: test, otherwise val, otherwise train."""
        return self.eval_loader(
            next(split for split in reversed(SPLITS) if self.source.files[split] is not None),
            enveloped=True,
        )

    def eval_loader(
        self, split: Split, *, skip: int = 0, share: slice = ALL, enveloped: bool = False
    ) -> DataLoader[Any]:
        """Returns batches of this rank's share in file order, without the first `skip` examples.

        Args:
            split: the split to load.
            skip: number of examples to leave out at the start.
            share: selects batches, after `skip`; for processes that share an evaluation.
            enveloped: True for loaders that Lightning's trainer uses; see `Envelope`.
        """
        examples = self.examples(split)
        return self.scoring_loader(split, examples, skip=skip, share=share, enveloped=enveloped)

    def scoring_loader(
        self,
        split: Split,
        examples: Examples,
        *,
        skip: int = 0,
        share: slice = ALL,
        enveloped: bool = False,
    ) -> DataLoader[Any]:
        """Like `eval_loader`, for the given examples of the split."""
        world_size, rank = self._ranks()
        order = BatchOrder(
            num_examples=len(examples),
            batch_size=self.eval_batch_size,
            shuffle=False,
            seed=0,
            rank=rank,
            world_size=world_size,
        )
        mine = [index for batch in order for index in batch][skip:]
        size = self.eval_batch_size
        batches = [mine[i : i + size] for i in range(0, len(mine), size)][share]
        dataset = self._dataset(split, examples, scored=True)
        options = self._loader_options(enveloped=enveloped, max_tokens=self.eval_batch_tokens)
        return EvalLoader(dataset, note=self.unreadable.note, batch_sampler=batches, **options)

    def _dataset(self, split: Split, examples: Examples, *, scored: bool) -> GroundingDataset:
        """Returns the dataset of some examples; builds it if the list is new.

        With `on_missing="skip"`, an unreadable example is left out if `scored`; otherwise another
        example replaces it. Training cuts segments at the end of the clip. Scored segments stay as
        published.
        """
        on_unreadable: OnUnreadable = "error"
        if self.on_missing == "skip":
            on_unreadable = "leave_out" if scored else "replace"
        fits = split == "train" and not scored
        key = f"{split}/{on_unreadable}/{fits}"
        # A dataset stores unusable clips by index, so another list needs another dataset.
        known = self._datasets.get(key)
        if known is None or known[0] is not examples:
            dataset = GroundingDataset(
                examples=examples,
                loader=self.clips,
                memory_cache=self.memory_cache,
                on_unreadable=on_unreadable,
                problem_of=self.collator.prompt_problem if self.collator is not None else None,
                fit_segments=fits,
            )
            self._datasets[key] = known = (examples, dataset)
        return known[1]

    def _loader_options(self, *, enveloped: bool, max_tokens: int | None = None) -> dict[str, Any]:
        assert self.collator is not None, "batches need a task and a processor"
        collate: Collate = self.collator
        if max_tokens is not None:
            collate = SplitCollator(self.collator, max_tokens)
        options: dict[str, Any] = {
            "collate_fn": EnvelopeCollator(collate) if enveloped else collate,
            "num_workers": self.num_workers,
        }
        if self.num_workers > 0:
            # Decoders and the tokenizer hold threads, which do not survive a fork.
            options |= {"multiprocessing_context": WORKERS, "prefetch_factor": 2}
            options["persistent_workers"] = True  # starting a worker costs seconds of imports
        return options

    def _ranks(self) -> tuple[int, int]:
        trainer = getattr(self, "trainer", None)
        return (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
