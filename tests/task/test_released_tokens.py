"""Tests of the tokens of prompts and targets, with the tokenizers of the Qwen releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from tvg.config import CONF_DIR, build, compose
from tvg.data.collate import PromptCollator
from tvg.data.dataset import Sample
from tvg.data.readers import read_charades
from tvg.model.families import FAMILIES
from tvg.task.grounding import GroundingTask
from tvg.training.preflight import merges_with_prefill
from tvg.training.sft import target_tokens
from tvg.types import GroundingExample, PromptBatch, VideoClip

START, END = "<|im_start|>", "<|im_end|>"
OTHERS = {"_base", "recorded"}
PROMPTS = sorted({path.stem for path in (CONF_DIR / "prompt").glob("*.yaml")} - OTHERS)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_tokenizer"])
def processor(request: Any, shared_dir: Path) -> Any:
    """The released Qwen2.5-VL processor, with the tokenizer of Qwen2.5-VL or Qwen3."""
    layout = shared_dir / "data" / "release_layout"
    if not layout.is_dir():
        pytest.skip("needs the folder `release_layout` in `shared`")
    made = AutoProcessor.from_pretrained(layout / "qwen2_5_vl")
    made.tokenizer = AutoTokenizer.from_pretrained(layout / request.param)
    return made


@pytest.fixture(scope="module")
def examples(shared_dir: Path) -> list[GroundingExample]:
    """Real annotations, including the longest query and the latest segment end."""
    file = shared_dir / "data" / "charades_sta" / "val.json"
    read = read_charades(file, None, clamp_ends=True, drop_invalid=True).examples
    longest = max(read, key=lambda example: len(example.query))
    last = max(read, key=lambda example: example.segment.end_s)
    return [*read[:: len(read) // 10], longest, last]


@pytest.fixture(scope="module")
def tasks() -> dict[str, GroundingTask]:
    return {name: build(compose("train", [f"prompt={name}"]).cfg.prompt) for name in PROMPTS}


def batch_of(task: GroundingTask, processor: Any, examples: list[GroundingExample]) -> PromptBatch:
    clip = VideoClip(
        frames=torch.zeros((4, 3, 28, 28), dtype=torch.uint8),
        sampled_fps=2.0,
        frame_times_s=torch.arange(4, dtype=torch.float64) / 2,
        duration_s=2.0,
    )
    collate = PromptCollator(task=task, processor=processor, family=FAMILIES["qwen2_5_vl"])
    return collate([Sample(example, clip) for example in examples])


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def completions(
    task: GroundingTask, tokenizer: Any, batch: PromptBatch
) -> list[tuple[list[int], str]]:
    """Returns token ids (with the end token) and text of the answer to each prompt."""
    if task.answer_format is None:
        text = "<think> It is the glass. </think>\n" * task.think + "<answer>(B)</answer>"
        return [(ids_of(tokenizer, text + END), text)] * len(batch)
    ids, mask = target_tokens(batch, task, tokenizer)
    rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    return [(r, task.target(e)) for r, e in zip(rows, batch.examples, strict=True)]


@pytest.mark.parametrize("name", PROMPTS)
def test_tokens_of_prompts_and_targets_do_not_merge(tasks, processor, examples, name):
    task, tokenizer = tasks[name], processor.tokenizer
    batch = batch_of(task, processor, examples)
    rows = zip(batch.input_ids, batch.attention_mask, strict=True)
    asked = [row[keep.bool()].tolist() for row, keep in rows]
    answers = completions(task, tokenizer, batch)
    for example, prompt, (answer, text) in zip(examples, asked, answers, strict=True):
        shown = tokenizer.decode(prompt)
        assert task.query_text(example.query) in shown
        assert shown.endswith(f"{START}assistant\n{task.prefill or ''}")
        assert ids_of(tokenizer, f"{shown}{text}{END}") == [*prompt, *answer]


@pytest.mark.parametrize("name", PROMPTS)
def test_targets_are_parsed_back_from_their_tokens(tasks, processor, examples, name):
    task, tokenizer = tasks[name], processor.tokenizer
    batch = batch_of(task, processor, examples)
    for example, (ids, text) in zip(examples, completions(task, tokenizer, batch), strict=True):
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded == text
        assert task.has_exact_format(decoded)
        parsed = task.parse(decoded)
        if task.answer_format is None:
            assert parsed.answer == "(B)"
        else:
            half_digit = 0.051 if name.startswith("short") else 0.0051
            assert parsed.segment == pytest.approx(example.segment, abs=half_digit)
        assert (parsed.thought is not None) == task.think
        pieces = [tokenizer.decode([token]) for token in ids]
        digits = [piece for piece in pieces if any(c.isdigit() for c in piece)]
        assert all(len(piece) == 1 for piece in digits)
        assert pieces[-1] == END


def test_a_prefill_without_a_line_break_merges_with_answers(processor):
    """`conf/prompt/_base.yaml` therefore requires a line break."""
    tokenizer = processor.tokenizer
    for prefill, is_kept_apart in {
        "<think>\n</think>\n": True,
        "<think></think>": "<think>" in tokenizer.get_vocab(),
    }.items():
        apart = ids_of(tokenizer, prefill) + ids_of(tokenizer, "<answer>1")
        assert (ids_of(tokenizer, f"{prefill}<answer>1") == apart) == is_kept_apart
        assert merges_with_prefill(tokenizer, prefill, "<answer>1") is not is_kept_apart
