"""Collates samples into batches of tokens, normalised patches and sampled frame rates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tvg.data.chat_template import DEFAULT_LIMITS, TemplateLimits, render_chat
from tvg.data.dataset import LeftOut, Sample
from tvg.model.families import Family
from tvg.model.families.patching import clip_patches
from tvg.task.protocol import Task
from tvg.types import EncodedClip, GroundingExample, PromptBatch, UnexpandedPrompt, VideoClip

MOST_QUERY_PLACES = 4  # assumed maximum number of times that a prompt contains the query


class PromptCollator:
    """Builds a `PromptBatch` of left-padded prompts.

    Frames arrive sampled and resized; the family's patching normalises them and cuts patches. The
    collator writes the text of each clip from the grid in patches and the true frame times.

    Args:
        task: builds the chat messages.
        processor: a Hugging Face processor with `tokenizer`, `video_processor` and chat template.
        family: the model's family; writes the text of clips and cuts their patches.
        max_prompt_tokens: longest prompt accepted; None for no limit.
        template_limits: time and memory limits of the checkpoint's chat template.
        keep_frames: also put frames and unexpanded token ids into the batch, for rollout engines
            that process clips themselves.

    Raises:
        ValueError: one of these cases. Errors of a prompt name the example.

            - The processor belongs to another family.
            - `keep_frames` is set, but a clip consists of cached features.
            - The chat template fails or exceeds a limit.
            - A prompt is longer than `max_prompt_tokens`, does not contain the clip's mark, or
              contains an extra mark or placeholder.
    """

    def __init__(
        self,
        *,
        task: Task,
        processor: Any,
        family: Family,
        max_prompt_tokens: int | None = None,
        template_limits: TemplateLimits = DEFAULT_LIMITS,
        keep_frames: bool = False,
    ) -> None:
        self.keep_frames = keep_frames
        self.task = task
        self.processor = processor
        self.clip_text = family.clip_text(task.frame_times)
        self.patching = family.patching(processor)
        self.max_prompt_tokens = max_prompt_tokens
        self._prompt_bytes: int | None = None  # of one prompt, without the clip
        self.template_limits = template_limits
        # messages as JSON -> prompt: the template is slow and queries recur in each epoch
        self._texts: dict[str, str] = {}

    def __call__(self, items: Sequence[Sample | LeftOut]) -> PromptBatch:
        samples = [item for item in items if isinstance(item, Sample)]
        unreadable = _problems(items)
        if not samples:
            return _empty_batch(unreadable)
        pixels, features, grid_thw = self._vision(samples)
        texts = [
            self._chat_text(sample.example).replace(
                self.clip_text.mark, self._text_of_clip(sample, grid)
            )
            for sample, grid in zip(samples, grid_thw, strict=True)
        ]
        tokens = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for sample, ids in zip(samples, tokens, strict=True):
            if (problem := self._length_problem(len(ids))) is not None:
                raise ValueError(f"{sample.example.qid}: {problem}")
        input_ids, attention_mask = pad_rows(tokens, self._pad_id, side="left")
        return PromptBatch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values_videos=pixels,
            video_features=features,
            video_grid_thw=grid_thw,
            sampled_fps=_float64(sample.clip.sampled_fps for sample in samples),
            examples=[sample.example for sample in samples],
            unreadable=unreadable,
            duration_s=_float64(sample.clip.duration_s for sample in samples),
            unexpanded=[self._unexpanded(s) for s in samples] if self.keep_frames else [],
        )

    def _unexpanded(self, sample: Sample) -> UnexpandedPrompt:
        if not isinstance(sample.clip, VideoClip):
            raise ValueError(
                f"{sample.example.qid}: this rollout engine needs frames, but data/cache=features "
                "stores none: choose data/cache=frames"
            )
        text = self._chat_text(sample.example)
        return UnexpandedPrompt(
            token_ids=self.processor.tokenizer([text], add_special_tokens=False)["input_ids"][0],
            frames=sample.clip.frames,
            frame_times_s=sample.clip.frame_times_s,
            sampled_fps=sample.clip.sampled_fps,
        )

    def query_problem(self, example: GroundingExample) -> str | None:
        """Returns why a query cannot be used with any clip, or None."""
        query = self.task.asked_query(example)
        for token in (self.clip_text.placeholder, self.clip_text.mark):
            if token in query:
                return f"the query holds {token!r}, which marks the clip in a prompt"
        if self.max_prompt_tokens is None:
            return None
        # A text has at most as many tokens as bytes. If this bound is within the limit, as for most
        # queries, neither tokenizer nor template is needed.
        if self._prompt_bytes is None:
            self._prompt_bytes = len(self._chat_text(example).encode())
        most = self._prompt_bytes + MOST_QUERY_PLACES * len(query.encode())
        if most <= self.max_prompt_tokens:
            return None
        text = self._chat_text(example).replace(self.clip_text.mark, "")
        return self._length_problem(self._num_tokens(text), " without the clip")

    def prompt_problem(self, sample: Sample) -> str | None:
        """Returns why a sample cannot be in a batch (a prompt that is too long), or None."""
        if self.max_prompt_tokens is None:
            return None
        clip_text = self._text_of_clip(sample, self._grid(sample.clip))
        text = self._chat_text(sample.example).replace(self.clip_text.mark, clip_text)
        problem = self._length_problem(self._num_tokens(text))
        return problem and f"{sample.example.qid}: {problem}"

    def _length_problem(self, num_tokens: int, what: str = "") -> str | None:
        if self.max_prompt_tokens is None or num_tokens <= self.max_prompt_tokens:
            return None
        return (
            f"the prompt has {num_tokens} tokens{what}, "
            f"more than data.max_prompt_tokens={self.max_prompt_tokens}"
        )

    def _num_tokens(self, text: str) -> int:
        return len(self.processor.tokenizer([text], add_special_tokens=False)["input_ids"][0])

    def _grid(self, clip: VideoClip | EncodedClip) -> Tensor:
        """Returns the grid of a clip in patches, int64 [3], as `_vision` does."""
        if isinstance(clip, EncodedClip):
            return clip.grid_thw
        patching = self.patching
        num_frames, _, height, width = clip.frames.shape
        sides = (side // patching.token_side * patching.merge for side in (height, width))
        return torch.tensor([-(-num_frames // patching.num_frames), *sides])

    @property
    def _pad_id(self) -> int:
        return int(self.processor.tokenizer.pad_token_id)

    def _chat_text(self, example: GroundingExample) -> str:
        messages = self.task.messages(example)
        key = json.dumps(messages)
        if key not in self._texts:
            text = render_chat(self.processor, messages, self.template_limits)
            text += self.task.prefill or ""
            self._check_once(text, example.qid)
            self._texts[key] = text
        return self._texts[key]

    def _check_once(self, text: str, qid: str) -> None:
        for token in (self.clip_text.placeholder, self.clip_text.mark):
            expected = self.clip_text.mark.count(token)
            if text.count(token) != expected:
                where = {
                    0: f"{token} must not occur in the prompt",
                    1: f"expected {token} once in the prompt, as the place of the clip",
                }[expected]
                raise ValueError(f"{qid}: {where}, got {text.count(token)} times in {text!r}")

    def _text_of_clip(self, sample: Sample, grid_thw: Tensor) -> str:
        """Returns the text that represents one clip, given its grid in patches, int64 [3]."""
        patching = self.patching
        num_steps, height, width = grid_thw.tolist()
        return self.clip_text(
            num_steps=num_steps,
            tokens_per_step=height * width // patching.merge**2,
            step_times_s=step_times(sample.clip.frame_times_s, patching.num_frames),
        )

    def _vision(self, samples: Sequence[Sample]) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Returns pixels or cached features of all clips (the other is None), and their grids."""
        encoded = [s.clip for s in samples if isinstance(s.clip, EncodedClip)]
        if not encoded:
            clips = [s.clip for s in samples if isinstance(s.clip, VideoClip)]
            pixels, grid_thw = clip_patches(clips, self.patching)
            return pixels, None, grid_thw
        assert len(encoded) == len(samples), "a batch mixes frames and features"
        features = torch.cat([clip.features for clip in encoded])
        return None, features, torch.stack([clip.grid_thw for clip in encoded])


def _problems(items: Sequence[Sample | LeftOut]) -> list[str]:
    """Returns why clips were left out of a batch or replaced in it."""
    return [
        problem
        for item in items
        for problem in (item.replaces if isinstance(item, Sample) else (item.problem,))
    ]


def _empty_batch(unreadable: list[str]) -> PromptBatch:
    """Returns a batch without prompts, for when no clip could be read."""
    no_ids = torch.empty((0, 0), dtype=torch.int64)
    return PromptBatch(
        input_ids=no_ids,
        attention_mask=no_ids,
        pixel_values_videos=torch.empty((0, 0)),
        video_grid_thw=torch.empty((0, 3), dtype=torch.int64),
        sampled_fps=_float64(()),
        unreadable=unreadable,
        duration_s=_float64(()),
    )


def step_times(frame_times_s: Tensor, frames_per_step: int) -> list[list[float]]:
    """Returns the times of each step's frames; the last step is padded with the last frame's time.

    Negative times (of frames that appeared before the clip) become 0.
    """
    times = frame_times_s.clamp(min=0.0).tolist()
    times += times[-1:] * (-len(times) % frames_per_step)
    return [times[i : i + frames_per_step] for i in range(0, len(times), frames_per_step)]


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, *, side: str) -> tuple[Tensor, Tensor]:
    """Pads token rows to one length; returns ids and mask, int64 [rows, longest]."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.int64)
        mask[i, where] = 1
    return ids, mask


def _float64(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
