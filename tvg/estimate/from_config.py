"""Implements `tvg-train train.estimate=true`, which estimates memory without weights or videos."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from tvg.config import build
from tvg.config.nodes import at, plain, raw
from tvg.config.rules.machine import is_deepspeed
from tvg.config.values import number, value
from tvg.data.video.sampling import FrameSampling, max_pixels_per_frame, num_sampled_frames
from tvg.estimate.activations import FLOAT, Precision
from tvg.estimate.job import Job, Sharding, optimizer_cost
from tvg.estimate.memory import estimate
from tvg.estimate.meta import meta_model
from tvg.estimate.text import GIB, make_table, run_size, verdict
from tvg.model.families import Family, family_of
from tvg.model.loading import DTYPES, ModelSource
from tvg.model.shape import ModelShape, Parameters, count_parameters, shape_of
from tvg.report.console import make_console
from tvg.training.quiet_logs import quiet_libraries

FILE_FPS = 30.0  # assumed frame rate of the video files
CHARS_PER_TOKEN = 3  # pessimistic: Qwen2.5's tokenizer needs fewer tokens for English
CHAT_TOKENS = 64  # added by the chat template
LONG_QUERY = "x" * 200


def show_estimate(cfg: DictConfig, *, console: Console | None = None) -> None:
    """Prints the estimate of a composed config of `tvg-train`."""
    quiet_libraries()
    console = console or make_console()
    examples = training_list(cfg)
    job = make_job(cfg, clip_s=examples.clip_s)
    lines = estimate(job)
    console.print(make_table(lines, job))
    largest = f"Largest prompt: {job.prompt_tokens:,} tokens; {examples.words}."
    for text in (largest, *run_size(job, examples.num_examples)):
        console.print(text, highlight=False)
    memory_gib = cfg.train.device_memory_gib or visible_memory_gib()
    for text in verdict(job, lines, memory_gib=memory_gib):
        console.print(text, highlight=False)


def make_job(cfg: DictConfig, *, clip_s: float | None) -> Job:
    """Builds a job from a config of `tvg-train`; `clip_s` is the longest clip, None if unknown."""
    settings = plain(cfg)
    shape, model, checkpoint = _model(cfg)
    params = count_parameters(model)
    precision = _precision(settings)
    has_masters = _is_cast(settings) and is_deepspeed(settings)
    trained_bytes = _trained_bytes(settings, precision, params)
    prompt_tokens, patches = _prompt(cfg, shape, clip_s, family=family_of(model.config))
    group_size = int(number(settings, "objective.group_size") or 1)
    sharding = _sharding(settings)
    optimizer = value(settings, "objective.optimizer")
    is_view = value(settings, "strategy.gradient_as_bucket_view") is True
    return Job(
        shape=shape,
        params=params,
        precision=precision,
        is_autocast=precision.compute < trained_bytes,
        trained_bytes=trained_bytes,
        has_masters=has_masters,
        optimizer=optimizer_cost(
            str(optimizer["_target_"]),
            optimizer,
            number=FLOAT if has_masters else trained_bytes,
        ),
        sharding=sharding,
        gradient_copies=2 if sharding.devices > 1 and not sharding.stage and not is_view else 1,
        has_reference=bool(number(settings, "objective.loss.kl_coef")),
        offload_reference=value(settings, "objective.reference_offload") is True,
        gradient_checkpointing=checkpoint.gradient_checkpointing,
        forward=cfg.policy.forward,
        samples_shared=not str(value(settings, "rollout._target_")).endswith(".HFEngine"),
        is_encoded="FeatureCache" in str(value(settings, "data.cache._target_")),
        prompts=cfg.data.batch_size,
        prompts_per_call=value(settings, "rollout.prompts_per_call"),
        group_size=group_size,
        micro_prompts=cfg.objective.micro_batch_size,
        micro_completions=int(number(settings, "objective.micro_batch_completions") or group_size),
        prompt_tokens=prompt_tokens,
        completion_tokens=cfg.rollout.max_new_tokens,
        patches=patches,
        eval_prompts=cfg.data.eval_batch_size,
        eval_tokens=max(cfg.rollout.max_new_tokens, _rating_tokens(settings)),
    )


def _rating_tokens(settings: Any) -> int:
    """Returns the longest completion of callbacks that score the training set, or 0."""
    entries = value(settings, "callbacks") or {}
    limits = [number(entry, "max_new_tokens") for entry in entries.values() if entry]
    return int(max((limit or 0 for limit in limits), default=0))


def _model(cfg: DictConfig) -> tuple[ModelShape, Any, ModelSource]:
    """Builds the model; a checkpoint that the config creates is written to a temporary folder."""
    cfg = cfg.copy()
    with tempfile.TemporaryDirectory() as folder:
        if "folder" in (at(raw(cfg.model), "create") or ()):
            cfg.model.create.folder = folder
        source: ModelSource = build(cfg.model)
        model = meta_model(source)
    return shape_of(model.config), model, source


def _is_cast(settings: Any) -> bool:
    """Returns whether all weights, trained or frozen, are cast to half precision for the run."""
    wanted = str(value(settings, "trainer.precision"))
    is_half = wanted.startswith(("bf16", "16"))
    return is_half and (is_deepspeed(settings) or wanted.endswith("-true"))


def _precision(settings: Any) -> Precision:
    weight = DTYPES[value(settings, "model.dtype")].itemsize
    if _is_cast(settings):
        return Precision(weight=2, compute=2, stream=2)
    is_half = str(value(settings, "trainer.precision")).startswith(("bf16", "16"))
    return Precision(weight=weight, compute=2 if is_half else weight, stream=weight)


def _trained_bytes(settings: Any, precision: Precision, params: Parameters) -> int:
    """Returns bytes per trained weight; with adapters, trained weights are float32 unless cast."""
    return FLOAT if params.adapters and not _is_cast(settings) else precision.weight


def _sharding(settings: Any) -> Sharding:
    devices = value(settings, "trainer.devices", 1)
    if isinstance(devices, list):
        num_devices = len(devices)
    elif str(devices).isdigit():
        num_devices = int(devices)
    else:  # auto, -1: all devices
        num_devices = torch.cuda.device_count()
    return Sharding(
        devices=max(num_devices, 1) * int(number(settings, "trainer.num_nodes") or 1),
        stage=int(number(settings, "strategy.stage") or 0) if is_deepspeed(settings) else 0,
        offload_optimizer=value(settings, "strategy.offload_optimizer") is True,
        offload_parameters=value(settings, "strategy.offload_parameters") is True,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingList:
    """The number of training examples and their longest clip, according to the annotations."""

    num_examples: int | None  # None: they cannot be read
    clip_s: float | None  # the longest; None: an example states no length

    @property
    def words(self) -> str:
        """Describes how the largest prompt was determined."""
        if self.clip_s is not None:
            return f"the training annotations' longest clip has {self.clip_s:.0f} s"
        reason = "do not state every length" if self.num_examples is not None else "cannot be read"
        return (
            "its clip is the largest that data.clip.sampling allows (the training annotations "
            f"{reason})"
        )


def training_list(cfg: DictConfig) -> TrainingList:
    """Reads the training annotations, but no video."""
    # Resolve first, because file names may refer to the node `world`, which is removed below.
    node = OmegaConf.create(OmegaConf.to_container(cfg.data, resolve=True))
    assert isinstance(node, DictConfig)
    for key in ("video_dir", "world"):
        if key in node:
            node[key] = None  # annotations only
    try:
        data = build(node)(task=None, processor=None, family=None, seed=cfg.seed)
        examples = data.examples("train")
    except (ValueError, OSError):  # no such file, or the data are not generated yet
        return TrainingList(num_examples=None, clip_s=None)
    lengths = [e.window.length_s if e.window else e.duration_s for e in examples]
    known = [length for length in lengths if length is not None]
    is_stated = len(known) == len(lengths)
    return TrainingList(num_examples=len(examples), clip_s=max(known) if is_stated else None)


def _prompt(
    cfg: DictConfig, shape: ModelShape, clip_s: float | None, *, family: Family
) -> tuple[int, int]:
    """Returns tokens and patches of the largest prompt, with the largest frames of the sampling."""
    sampling: FrameSampling = build(cfg.data.clip).keywords["sampling"]
    num_frames = sampling.max_frames
    if clip_s is not None:
        num_frames = num_sampled_frames(max(round(clip_s * FILE_FPS), 1), FILE_FPS, sampling)
    a_frame = max_pixels_per_frame(num_frames, sampling) // sampling.resize_factor**2
    num_steps = num_frames // sampling.frame_factor
    video_tokens = num_steps * max(int(a_frame), 1)
    template = str(cfg.prompt.get("template") or "") + str(cfg.prompt.get("system") or "")
    text_tokens = CHAT_TOKENS + len(template + LONG_QUERY) // CHARS_PER_TOKEN
    clip_text = family.clip_text(cfg.prompt.get("frame_times") or None)
    text_tokens += clip_text.step_tokens * num_steps
    limit = cfg.data.get("max_prompt_tokens")
    prompt_tokens = video_tokens + text_tokens
    if limit is not None and prompt_tokens > limit:  # longer prompts are refused
        video_tokens, prompt_tokens = max(limit - text_tokens, 0), limit
    return prompt_tokens, video_tokens * shape.merge


def visible_memory_gib() -> float | None:
    """Returns the total memory of the first GPU in GiB; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory) / GIB
