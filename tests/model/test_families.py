"""Tests that Qwen language models compute the same states for a shared row and for sequences."""

import pytest
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tvg.model.packing import pack
from tvg.model.prefix_attention import share_prefix
from tvg.model.wrapped_model import no_mask

FAMILIES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}
PROMPTS, COMPLETIONS, GROUP = (7, 4), (3, 5, 0, 2), 2


def make_model(family: str):
    config_class, model_class = FAMILIES[family]
    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 50,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 3, 3],
            "mrope_interleaved": True,
        },
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
    vision |= {"out_hidden_size": 64, "deepstack_visual_indexes": [0], "embed_dim": 32}
    config = config_class(text_config=text, vision_config=vision, image_token_id=1)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return model_class(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_row_equals_each_sequence_alone(family):
    model = make_model(family)
    language = model.model.language_model
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randn(length, 64, generator=generator) for length in PROMPTS]
    completions = [torch.randn(length, 64, generator=generator) for length in COMPLETIONS]
    expected = []
    with torch.no_grad():
        for number, completion in enumerate(completions):
            alone = torch.cat([prompts[number // GROUP], completion]).unsqueeze(0)
            positions = torch.arange(alone.shape[1]).expand(3, 1, -1)
            states = language(
                inputs_embeds=alone, position_ids=positions, use_cache=False
            ).last_hidden_state[0]
            first = len(prompts[number // GROUP]) - 1
            expected.append(states[first : first + len(completion)])

        share_prefix(model)
        widest, longest = max(PROMPTS), max(COMPLETIONS)
        prompt_mask = torch.stack([(torch.arange(widest) >= widest - n).long() for n in PROMPTS])
        mask = torch.stack([(torch.arange(longest) < n).long() for n in COMPLETIONS])
        row = pack(prompt_mask, mask, group_size=GROUP)
        order = torch.cat([row.prompt_places, row.completion_places]).argsort()
        starts = [len(prompts[n // GROUP]) for n in range(len(completions))]
        places = [torch.arange(len(p)) for p in prompts]
        places += [s + torch.arange(len(c)) for s, c in zip(starts, completions, strict=True)]
        got = language(
            inputs_embeds=torch.cat([*prompts, *completions])[order].unsqueeze(0),
            position_ids=torch.cat(places)[order].expand(3, 1, -1),
            attention_mask=no_mask(model),
            use_cache=False,
            packed_row=row,
        ).last_hidden_state[0, row.sources]
    torch.testing.assert_close(got, torch.cat(expected), atol=2e-6, rtol=1e-5)
