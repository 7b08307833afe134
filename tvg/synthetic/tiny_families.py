"""Writes tiny checkpoints of the other families, as `tvg.synthetic.tiny` does for Qwen2.5-VL.

The tokenizer and the chat format are the same. Architecture, processor and special tokens are those
of the family's real checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tvg.synthetic.templates import all_queries
from tvg.synthetic.tiny import ends, save_random, vision_ids
from tvg.synthetic.tiny_tokenizer import train_tokenizer

VOCABULARY = 640  # maximum number of tokens, including special ones
HEAD_SIZE = 32  # supported by vLLM
VISION_HIDDEN, VISION_HEADS = 64, 2
# Pixel limits of the real processors.
_QWEN2_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
_QWEN3_SIZE = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}


def text_config(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    initializer_range: float,
    rope: Mapping[str, Any],
) -> dict[str, Any]:
    """Config of a tiny language model, with the keys common to all families.

    `rope` holds the settings of the rotary frequencies.
    """
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // HEAD_SIZE,
        "num_key_value_heads": hidden_size // HEAD_SIZE // 2,
        "initializer_range": initializer_range,
        "rope_parameters": {"rope_type": "default", **rope},
        **ends(tokenizer),
    }


def write_tiny_qwen2_vl(
    folder: Path | str,
    *,
    seed: int,
    corpus: Iterable[str] | None = None,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    initializer_range: float,
) -> Path:
    """Writes a randomly initialised tiny Qwen2-VL; returns the folder.

    Args:
        folder: the folder to write; created if missing.
        seed: seed of the weights; the caller's random state is not changed.
        corpus: text to train the tokenizer on; None: every query of the synthetic world.
        hidden_size: width of the language model, a multiple of 64.
        intermediate_size: width of its MLPs.
        num_layers: layers of the language model.
        initializer_range: standard deviation of the initial weights.
    """
    tokenizer = train_tokenizer(corpus or all_queries(), vocab_size=VOCABULARY)
    config = Qwen2VLConfig(
        text_config=text_config(
            tokenizer,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=num_layers,
            initializer_range=initializer_range,
            rope={"rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        ),
        vision_config={
            "depth": 2,
            "embed_dim": VISION_HIDDEN,
            "mlp_ratio": 2,
            "num_heads": VISION_HEADS,
            "hidden_size": hidden_size,
            "initializer_range": initializer_range,
        },
        tie_word_embeddings=True,
        **vision_ids(tokenizer),
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(_QWEN2_SIZE)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(_QWEN2_SIZE)),
        chat_template=tokenizer.chat_template,
    )
    return save_random(Qwen2VLForConditionalGeneration, config, processor, Path(folder), seed=seed)


def write_tiny_qwen3_vl(
    folder: Path | str,
    *,
    seed: int,
    corpus: Iterable[str] | None = None,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    initializer_range: float,
) -> Path:
    """Writes a randomly initialised tiny Qwen3-VL with two deepstack layers; returns the folder.

    Args:
        folder: the folder to write; created if missing.
        seed: seed of the weights; the caller's random state is not changed.
        corpus: text to train the tokenizer on; None: every query of the synthetic world.
        hidden_size: width of the language model, a multiple of 64.
        intermediate_size: width of its MLPs.
        num_layers: layers of the language model, at least 3.
        initializer_range: standard deviation of the initial weights.
    """
    tokenizer = train_tokenizer(corpus or all_queries(), vocab_size=VOCABULARY)
    config = Qwen3VLConfig(
        text_config=text_config(
            tokenizer,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=num_layers,
            initializer_range=initializer_range,
            rope={"rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
        )
        | {"head_dim": HEAD_SIZE},
        vision_config={
            "depth": 3,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 2 * VISION_HIDDEN,
            "num_heads": VISION_HEADS,
            "out_hidden_size": hidden_size,
            "num_position_embeddings": 8 * 8,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": initializer_range,
        },
        tie_word_embeddings=True,
        **vision_ids(tokenizer),
    )
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(_QWEN3_SIZE), patch_size=16),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=dict(_QWEN3_SIZE)),
        chat_template=tokenizer.chat_template,
    )
    return save_random(Qwen3VLForConditionalGeneration, config, processor, Path(folder), seed=seed)
