"""Model sizes: a small shape for computations by hand, and configs of released checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from tvg.model.shape import ModelShape

# Attention products: 2 * (4 + 4 + 2 + 2) = 24 weights; MLP: 3 * 2 * 5 = 30; keys and values: 8.
BY_HAND = ModelShape(
    hidden=2,
    mlp=5,
    layers=3,
    heads=2,
    key_heads=1,
    head_size=2,
    words=7,
    vision_hidden=3,
    vision_mlp=4,
    vision_layers=2,
    vision_full_layers=1,
    window=4,
    merge=4,
    patch_values=6,
)

_TEXT = {
    "3b": (2048, 11008, 36, 16, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "72b": (8192, 29568, 80, 64, 8, 152064, False),
}


def write_config(folder: Path, size: str) -> Path:
    """Writes the config.json of the released Qwen2.5-VL "3b", "7b" or "72b", without weights."""
    hidden, mlp, layers, heads, key_heads, words, is_tied = _TEXT[size]
    text = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": words,
        "tie_word_embeddings": is_tied,
    }
    vision = {
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "depth": 32,
        "num_heads": 16,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    config = {"model_type": "qwen2_5_vl", "text_config": text, "vision_config": vision}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": is_tied}))
    return folder
