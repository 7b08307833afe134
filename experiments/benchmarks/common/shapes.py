"""Random models and prompts of given shapes, made in memory without a download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tvg.model.families.qwen_attention import batch_windows
from tvg.model.freezing import freeze_parts
from tvg.model.policy import Policy
from tvg.types import GroundingExample, PromptBatch

FRAME_TOKENS = 8 * 8  # merged tokens of one frame pair
VISION_START, VISION_END, VIDEO = 1, 2, 3  # arbitrary ids; completions never contain them
FIRST_WORD = 8

# text: hidden size, MLP size, layers, heads, key heads, vocabulary size.
# vision: hidden size, MLP size, layers, heads.
# "3b", "7b" and "72b" are the shapes of the released Qwen2.5-VL checkpoints.
SHAPES: dict[str, dict[str, Any]] = {
    "5m": {
        "text": (256, 768, 6, 4, 2, 1024),
        "vision": (64, 128, 2, 2),
        "mrope": [8, 12, 12],
        "tied": True,
    },
    "3b": {
        "text": (2048, 11008, 36, 16, 2, 151936),
        "vision": (1280, 3420, 32, 16),
        "mrope": [16, 24, 24],
        "tied": True,
    },
    "7b": {
        "text": (3584, 18944, 28, 28, 4, 152064),
        "vision": (1280, 3420, 32, 16),
        "mrope": [16, 24, 24],
        "tied": False,
    },
    "72b": {
        "text": (8192, 29568, 80, 64, 8, 152064),
        "vision": (1280, 3456, 32, 16),
        "mrope": [16, 24, 24],
        "tied": False,
    },
}


def shape_config(shape: str, *, eos_token_id: int, pad_token_id: int, **ids: int) -> Any:
    """Returns the config of a shape; `ids` are the special tokens of vision inputs."""
    hidden, mlp, layers, heads, key_heads, words = SHAPES[shape]["text"]
    v_hidden, v_mlp, v_layers, v_heads = SHAPES[shape]["vision"]
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "vocab_size": words,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": SHAPES[shape]["mrope"],
            },
            "bos_token_id": None,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
            "tie_word_embeddings": SHAPES[shape]["tied"],
        },
        vision_config={
            "hidden_size": v_hidden,
            "intermediate_size": v_mlp,
            "depth": v_layers,
            "num_heads": v_heads,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [v_layers - 1] if v_layers < 32 else [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
        tie_word_embeddings=SHAPES[shape]["tied"],
        **ids,
    )


def random_model(config: Any, *, device: str, dtype: torch.dtype) -> Any:
    """Returns a model with random weights."""
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)


def make_policy(shape: str, *, forward_by: str, device: str, dtype: torch.dtype) -> Policy:
    """Returns a random policy with a frozen vision trunk, as in Time-R1's training."""
    config = shape_config(
        shape,
        eos_token_id=VISION_END,
        pad_token_id=0,
        video_token_id=VIDEO,
        image_token_id=4,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    model = random_model(config, device=device, dtype=dtype)
    batch_windows(model)
    freeze_parts(model, vision=True, merger=False, language=False)
    # The EOS token is suppressed, so that every completion has the full length.
    return Policy(
        model=model.eval(),
        suppressed_ids=list(range(FIRST_WORD)),
        eos_ids=[VISION_END],
        pad_id=0,
        forward_by=forward_by,
    ).to(device)


def make_prompts(
    policy: Policy, *, num: int, num_tokens: int, device: str, dtype: torch.dtype
) -> PromptBatch:
    """Returns prompts of P tokens: all frames that fit into P - 64 tokens, and text."""
    generator = torch.Generator().manual_seed(1)
    config = policy.model.config
    steps = (num_tokens - 64) // FRAME_TOKENS
    num_text = num_tokens - steps * FRAME_TOKENS - 2
    words = torch.randint(
        FIRST_WORD, config.text_config.vocab_size, (num, num_text), generator=generator
    )
    half = num_text // 2
    video = torch.full((num, steps * FRAME_TOKENS), VIDEO)
    start, end = torch.full((num, 1), VISION_START), torch.full((num, 1), VISION_END)
    ids = torch.cat([words[:, :half], start, video, end, words[:, half:]], dim=1)
    side = 2 * int(FRAME_TOKENS**0.5)
    grid = torch.tensor([[steps, side, side]] * num)
    patch_values = 3 * 2 * config.vision_config.patch_size**2
    pixels = torch.randn(int(grid.prod(-1).sum()), patch_values, generator=generator)
    examples = [
        GroundingExample(
            qid=str(n), video=str(n), video_path=None, query="", segment=None, duration_s=None
        )
        for n in range(num)
    ]
    return PromptBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=pixels.to(dtype),
        video_grid_thw=grid,
        sampled_fps=torch.full((num,), 2.0, dtype=torch.float64),
        examples=examples,
        duration_s=torch.full((num,), float(steps), dtype=torch.float64),
    ).to(device)
