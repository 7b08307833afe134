"""Writes a tiny Qwen2.5-VL as a Hugging Face folder, using transformers' own classes.

Architecture, special tokens, chat template and processor are those of the real checkpoints; only
the sizes differ. Code that runs with the tiny model therefore also runs with the real ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from tvg.synthetic.templates import all_queries
from tvg.synthetic.tiny_tokenizer import train_tokenizer

# Pixel limits of the real Qwen2.5-VL processor, in pixels per image or frame.
_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}


def write_tiny_checkpoint(
    folder: Path | str,
    *,
    seed: int,
    corpus: Iterable[str] | None = None,
    vocab_size: int = 640,
    hidden_size: int = 128,
    intermediate_size: int = 384,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    rope_theta: float = 1e6,
    mrope_section: tuple[int, int, int] = (4, 6, 6),
    tokens_per_second: int = 2,
    initializer_range: float = 0.02,
    vision_depth: int = 2,
    vision_hidden_size: int = 64,
    vision_intermediate_size: int = 128,
    vision_num_heads: int = 2,
) -> Path:
    """Writes a randomly initialised tiny checkpoint that `from_pretrained` can load.

    Args:
        folder: the folder to write; created if missing.
        seed: seed of the weights; the caller's random state is not changed.
        corpus: text to train the tokenizer on; None: every query of the synthetic world.
        vocab_size: maximum number of tokens, including special ones; a small corpus gives fewer.
        hidden_size: width of the language model; vLLM supports head sizes
            (hidden_size / num_heads) of 32, 64, 80, ...
        intermediate_size: width of its MLPs.
        num_layers: layers of the language model.
        num_heads: its attention heads.
        num_kv_heads: its key/value heads, shared among the attention heads.
        rope_theta: base of the rotary frequencies.
        mrope_section: number of rotary frequencies for time, height and width.
        tokens_per_second: time positions per second of video.
        initializer_range: standard deviation of the initial weights.
        vision_depth: layers of the vision tower (patch size 14, merge 2 and two frames per patch,
            as in the real model).
        vision_hidden_size: width of the vision tower.
        vision_intermediate_size: width of its MLPs.
        vision_num_heads: its attention heads.

    Returns:
        The folder.

    Raises:
        ValueError: num_heads does not divide hidden_size, or mrope_section does not add up to half
            a head.
    """
    head_size, rest = divmod(hidden_size, num_heads)
    if rest or 2 * sum(mrope_section) != head_size:
        raise ValueError(
            "hidden_size must be num_heads * head size, and mrope_section must add up to half a "
            f"head: got hidden_size={hidden_size}, num_heads={num_heads}, {mrope_section=}"
        )
    tokenizer = train_tokenizer(corpus or all_queries(), vocab_size=vocab_size)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "initializer_range": initializer_range,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": rope_theta,
                "mrope_section": list(mrope_section),
            },
            **ends(tokenizer),
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_hidden_size,
            "intermediate_size": vision_intermediate_size,
            "num_heads": vision_num_heads,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [vision_depth - 1],
            "tokens_per_second": tokens_per_second,
            "initializer_range": initializer_range,
        },
        tie_word_embeddings=True,
        **vision_ids(tokenizer),
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(_SIZE)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(_SIZE)),
        chat_template=tokenizer.chat_template,
    )
    return save_random(
        Qwen2_5_VLForConditionalGeneration, config, processor, Path(folder), seed=seed
    )


def ends(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Special ids of a text config (BOS, EOS, padding), and its tied head."""
    return {
        "bos_token_id": None,
        "eos_token_id": token_id(tokenizer, "<|im_end|>"),
        "pad_token_id": token_id(tokenizer, "<|endoftext|>"),
        "tie_word_embeddings": True,
    }


def vision_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Special ids of vision inputs, by their names in a Qwen-VL config."""
    return {
        "image_token_id": token_id(tokenizer, "<|image_pad|>"),
        "video_token_id": token_id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": token_id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": token_id(tokenizer, "<|vision_end|>"),
    }


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Returns the id of a token of the vocabulary."""
    index = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(index, int), token
    return index


def save_random(model_class: Any, config: Any, processor: Any, folder: Path, *, seed: int) -> Path:
    """Writes a model with random weights together with its processor; returns the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config = GenerationConfig(
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
