"""Reads the sizes of the data of a run from its config: number of examples, largest prompt."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from tvg.config import build
from tvg.data.video.sampling import FrameSampling, max_pixels_per_frame, num_sampled_frames
from tvg.model.families import Family
from tvg.model.shape import ModelShape

FILE_FPS = 30.0  # assumed frame rate of the video files
CHARS_PER_TOKEN = 3  # pessimistic: Qwen2.5's tokenizer needs fewer tokens for English
CHAT_TOKENS = 64  # added by the chat template
LONG_QUERY = "x" * 200


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


def largest_prompt(
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
