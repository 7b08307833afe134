"""Writes a tiny InternVL, as `tvg.synthetic.tiny` does for Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from tvg.synthetic.templates import all_queries
from tvg.synthetic.tiny import save_random, token_id
from tvg.synthetic.tiny_families import VISION_HEADS, VISION_HIDDEN, VOCABULARY, text_config
from tvg.synthetic.tiny_tokenizer import train_tokenizer

TOKEN_SIDE = 28  # in pixels
# The names in the released tokenizers.
_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
# The released format: one placeholder per clip, and no default system turn.
_CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}\n\
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' %}<IMG_CONTEXT>\n\
{% elif content['type'] == 'video' %}<video>\n\
{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""


def write_tiny_internvl(
    folder: Path | str,
    *,
    seed: int,
    corpus: Iterable[str] | None = None,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    initializer_range: float,
    frame_side: int,
) -> Path:
    """Writes a randomly initialised tiny InternVL3; returns the folder.

    Args:
        folder: the folder to write; created if missing.
        seed: seed of the weights; the caller's random state is not changed.
        corpus: text to train the tokenizer on; None: every query of the synthetic world.
        hidden_size: width of the language model, a multiple of 64.
        intermediate_size: width of its MLPs.
        num_layers: layers of the language model.
        initializer_range: standard deviation of the initial weights.
        frame_side: side of the input frames in pixels, a multiple of 28.
    """
    num_tokens = (frame_side // TOKEN_SIDE) ** 2  # tokens per frame
    tokenizer = _tokenizer(corpus or all_queries())
    config = InternVLConfig(
        text_config=text_config(
            tokenizer,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=num_layers,
            initializer_range=initializer_range,
            rope={"rope_theta": 1e6},
        )
        | {"model_type": "qwen2"},
        vision_config={
            "num_hidden_layers": 2,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 2 * VISION_HIDDEN,
            "num_attention_heads": VISION_HEADS,
            "attention_bias": True,
            "image_size": [frame_side] * 2,
            "initializer_range": initializer_range,
        },
        image_token_id=token_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=num_tokens,
        tie_word_embeddings=True,
    )
    size = {"height": frame_side, "width": frame_side}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=num_tokens,
        chat_template=_CHAT_TEMPLATE,
    )
    return save_random(InternVLForConditionalGeneration, config, processor, Path(folder), seed=seed)


def _tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    words = train_tokenizer(corpus, vocab_size=VOCABULARY)
    words.add_special_tokens({"additional_special_tokens": list(_TOKENS.values())})
    return PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=_TOKENS,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
