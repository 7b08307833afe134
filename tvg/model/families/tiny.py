"""Shared parts of tiny checkpoints: a family's real classes with small sizes and random weights.

`tvg.synthetic.tiny` writes these checkpoints. Their special tokens are those of Qwen's released
tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEAD_SIZE = 32  # supported by vLLM
VISION_HIDDEN, VISION_HEADS = 64, 2
# Pixel limits of the processors of Qwen2-VL and Qwen2.5-VL, in pixels per image or frame.
PIXEL_LIMITS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """The sizes of a tiny checkpoint.

    Raises:
        ValueError: `hidden_size` is not a multiple of 64.
    """

    hidden_size: int  # width of the language model, a multiple of 64 (heads of 32, in pairs)
    intermediate_size: int  # width of the language model's MLPs
    num_layers: int  # layers of the language model
    initializer_range: float  # standard deviation of the initial weights
    frame_side: int  # side of input frames in pixels, for families with a fixed frame size

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.hidden_size % (2 * HEAD_SIZE):
            raise ValueError(
                f"hidden_size: expected a multiple of {2 * HEAD_SIZE} (heads of {HEAD_SIZE}, two "
                f"per key/value head), got {self.hidden_size}"
            )


@dataclass(frozen=True, kw_only=True)
class TinyParts:
    """Config and processor of a tiny checkpoint, in transformers' classes."""

    config: Any
    processor: Any


def text_config(tokenizer: Any, sizes: TinySizes, *, rope: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of a tiny language model, with the keys common to all families.

    `rope` holds the settings of the rotary frequencies.
    """
    num_heads = sizes.hidden_size // HEAD_SIZE
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads // 2,
        "initializer_range": sizes.initializer_range,
        "rope_parameters": {"rope_type": "default", **rope},
        "bos_token_id": None,
        "eos_token_id": token_id(tokenizer, "<|im_end|>"),
        "pad_token_id": token_id(tokenizer, "<|endoftext|>"),
        "tie_word_embeddings": True,
    }


def vision_ids(tokenizer: Any) -> dict[str, int]:
    """Returns the ids of vision tokens, by their names in a Qwen-VL config."""
    return {
        "image_token_id": token_id(tokenizer, "<|image_pad|>"),
        "video_token_id": token_id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": token_id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": token_id(tokenizer, "<|vision_end|>"),
    }


def token_id(tokenizer: Any, token: str) -> int:
    """Returns the id of a token of the vocabulary."""
    index = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(index, int), token
    return index
