"""A tiny policy with its processor, task and data set, shared by several tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvg.data.collate import PromptCollator
from tvg.data.dataset import GroundingDataset
from tvg.data.readers import read_charades
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.data.video.sampling import FrameSampling
from tvg.model.adapters import no_adapter
from tvg.model.families import Family, family_of
from tvg.model.loading import ModelSource
from tvg.model.policy import Policy
from tvg.rollout.engine import RolloutEngine
from tvg.rollout.hf import HFEngine
from tvg.rollout.in_process import InProcessEngine
from tvg.task.grounding import GroundingTask
from tvg.training.step_output import StepOutput
from tvg.types import PromptBatch, RolloutBatch

SMALL_FRAMES = FrameSampling(min_pixels=28 * 28, max_pixels=28 * 28)


@dataclass(frozen=True)
class Parts:
    policy: Policy
    processor: Any
    task: GroundingTask
    dataset: GroundingDataset
    collator: PromptCollator

    @property
    def family(self) -> Family:
        return family_of(self.policy.model.config)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def batch(self, num: int) -> PromptBatch:
        return self.collator([self.dataset[index] for index in range(num)])


def make_checkpoint(folder: Path) -> ModelSource:
    """Returns the source of a checkpoint, in float32, with no part frozen."""
    return ModelSource(
        path=str(folder),
        create=None,
        dtype="float32",
        attn_implementation="sdpa",
        freeze_vision=False,
        freeze_merger=False,
        freeze_language=False,
        gradient_checkpointing=False,
        adapter=no_adapter,
    )


def make_parts(checkpoint: Path, world: Path, *, sampling: FrameSampling = SMALL_FRAMES) -> Parts:
    spec = make_checkpoint(checkpoint)
    processor = spec.load_processor()
    task = make_task()
    examples = read_charades(
        world / "train.json", world / "videos", clamp_ends=True, drop_invalid=True
    ).examples
    loader = ClipLoader(sampling=sampling, decoder=DecordDecoder(num_threads=1), timeout_s=None)
    return Parts(
        policy=spec.load_policy(processor),
        processor=processor,
        task=task,
        dataset=GroundingDataset(examples=examples, loader=loader, memory_cache=True),
        collator=PromptCollator(task=task, processor=processor, family=spec.load_family()),
    )


def make_task(**changes: Any) -> GroundingTask:
    settings: dict[str, Any] = {
        "template": "{query}",
        "template_file": None,
        "system": None,
        "video_first": True,
        "answer_format": "<answer>{start_s:.1f} to {end_s:.1f}</answer>",
        "think": False,
        "lowercase": True,
        "strip_period": True,
    }
    return GroundingTask(**{**settings, **changes})


def make_rollout(engine: type[InProcessEngine] = HFEngine, **changes: Any) -> InProcessEngine:
    settings: dict[str, Any] = {
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "prompts_per_call": None,
    }
    return engine(**{**settings, **changes})


def sample_with(
    rollout: RolloutEngine,
    *,
    policy: Policy,
    tokenizer: Any,
    prompts: PromptBatch,
    group_size: int,
    seed: int,
) -> RolloutBatch:
    """Sets up an engine with a policy and returns its completions."""
    rollout.setup(policy=policy, tokenizer=tokenizer)
    return rollout.generate(prompts, group_size=group_size, seed=seed)


def with_rows(rows: list[dict[str, Any]] | None, **changes: Any) -> dict[str, Any]:
    """Returns the outputs of a training step with these rows of the rollout table."""
    settings: dict[str, Any] = {"num_prompts": 2, "num_tokens": 40, "metrics": {}}
    return StepOutput(rows=rows, **{**settings, **changes}).for_lightning()


class LengthReward:
    """A reward equal to a hundredth of the text's length, so that random completions differ."""

    def __call__(self, *, texts: list[str], **rest: Any) -> list[float]:
        return [len(text) / 100 for text in texts]
