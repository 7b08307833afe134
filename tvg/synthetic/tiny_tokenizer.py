"""Trains a small byte-level BPE tokenizer that behaves like Qwen2.5-VL's.

Special tokens (and their order), chat template and splitting rules are the same, except for
numbers. A whole second of a short clip, such as 17, is one token, while Qwen's tokenizer splits
numbers into digits. A policy of a million weights (experiments/demo) then needs one token for it.

Every text round-trips without loss, because the alphabet is bytes and no Unicode normalisation is
applied (unlike in Qwen's tokenizer).
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Qwen2's rule for splitting text into words before merging bytes, except for numbers: two digits
# may merge (Qwen's `\p{N}` splits every digit).
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# As in Qwen2.5-VL's tokenizer, in the same order. Decoding never skips ADDED_TOKENS.
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED_TOKENS: tuple[str, ...] = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)

# Qwen2.5-VL's chat format: ChatML turns, a default system turn, one placeholder per video.
CHAT_TEMPLATE = """\
{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}\
{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}\
<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n\
{% endif %}\
<|im_start|>{{ message['role'] }}\n\
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n\
{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}\
{% set image_count.value = image_count.value + 1 %}\
{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}\
<|vision_start|><|image_pad|><|vision_end|>\
{% elif content['type'] == 'video' or 'video' in content %}\
{% set video_count.value = video_count.value + 1 %}\
{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}\
<|vision_start|><|video_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}\
{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""

# Text of the demo's prompts and answers besides the queries, so that common words are one token.
_PHRASES: tuple[str, ...] = (
    "system\nYou are a helpful assistant.\nuser\nassistant\n",
    "Find the moment of the video that shows: When does this happen in the video?",
    "Give the start and the end of the event described by the query in seconds.",
    "Think first inside <think> </think>, then write the answer in <answer> </answer> as in",
    "<think>It starts at and ends at</think> <answer>3.50 to 7.00</answer>",
    "<answer>3.50 to 7.00</answer>",
    "<timestep>3.50 to 7.00</timestep> from to and seconds",
    "When in the video does the person open the door? The man is sitting on a chair.",
    *(f"<answer>{second}.{second % 10} to {second}.0</answer>" for second in range(21)),
)


def train_tokenizer(corpus: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on a corpus; the same corpus always gives the same vocabulary.

    Args:
        corpus: sentences; their common words become single tokens.
        vocab_size: maximum number of tokens, including the 256 bytes and the special tokens.

    Raises:
        ValueError: `vocab_size` leaves no room for the bytes and special tokens.
    """
    num_special = len(SPECIAL_TOKENS) + len(ADDED_TOKENS)
    if vocab_size < 256 + num_special:
        raise ValueError(
            f"vocab_size must be at least {256 + num_special} (256 bytes and {num_special} special "
            f"tokens), got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - num_special,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Prompts may be lower-cased. The phrases are repeated, so that rare words of the corpus do not
    # displace the phrases' words from the vocabulary.
    texts = [variant for text in corpus for variant in (text, text.lower())]
    tokenizer.train_from_iterator([*texts, *(_PHRASES * 100)], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ADDED_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
