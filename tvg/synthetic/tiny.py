"""Writes a tiny checkpoint of any family as a Hugging Face folder, using transformers' own classes.

The checkpoint has the architecture, special tokens and processor of the family's real checkpoints;
only the sizes differ. Code that runs with a tiny checkpoint therefore also runs with a real one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import GenerationConfig

from tvg.model.families import family_named
from tvg.model.families.tiny import TinySizes
from tvg.synthetic.templates import all_queries
from tvg.synthetic.tiny_tokenizer import train_tokenizer

VOCABULARY = 640  # maximum number of tokens, including special ones; a small corpus gives fewer


def write_tiny_checkpoint(
    folder: Path | str,
    *,
    family: str,
    seed: int,
    corpus: Iterable[str] | None = None,
    hidden_size: int = 128,
    intermediate_size: int = 384,
    num_layers: int = 4,
    initializer_range: float = 0.02,
    frame_side: int = 28,
) -> Path:
    """Writes a randomly initialised tiny checkpoint that `from_pretrained` can load.

    Args:
        folder: the folder to write; created if missing.
        family: the model type; see `tvg.model.families`.
        seed: seed of the weights; the global random state is not changed.
        corpus: text to train the tokenizer on; None: every query of the synthetic world.
        hidden_size: width of the language model, a multiple of 64.
        intermediate_size: width of the language model's MLPs.
        num_layers: layers of the language model.
        initializer_range: standard deviation of the initial weights.
        frame_side: side of the input frames in pixels, for families with a fixed frame size.

    Returns:
        The folder.

    Raises:
        ValueError: there is no such family, or a size does not fit it.
    """
    chosen = family_named(family, "family: the tiny checkpoint")
    sizes = TinySizes(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        initializer_range=initializer_range,
        frame_side=frame_side,
    )
    tokenizer = train_tokenizer(corpus or all_queries(), vocab_size=VOCABULARY)
    parts = chosen.tiny(tokenizer, sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = chosen.model_class(parts.config)
    model.generation_config = GenerationConfig(
        eos_token_id=parts.config.text_config.eos_token_id,
        pad_token_id=parts.config.text_config.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    return Path(folder)
