"""Batched windows against transformers' own loop over them."""

import copy

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tvg.model.vision_attention import batch_windows


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        attn_implementation="sdpa",
    )
    return Qwen2_5_VLForConditionalGeneration(config).double().eval()


@pytest.mark.parametrize(
    "grids",
    [
        [[1, 2, 2]],
        [[3, 2, 2], [5, 2, 2]],
        [[2, 18, 26]],  # windows cut off at the right and at the bottom: four lengths
        [[2, 8, 8], [1, 10, 4], [3, 2, 12]],
    ],
)
def test_outputs_and_gradients_are_those_of_the_loop(model, grids):
    grid = torch.tensor(grids)
    patches = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 14 * 14, dtype=torch.float64)
    batched = copy.deepcopy(model)
    batch_windows(batched)
    weights = torch.randn(int(grid.prod(-1).sum()) // 4, 32, dtype=torch.float64)
    results = []
    for each in (model, batched):
        each.zero_grad()
        out = torch.cat(list(each.model.get_video_features(patches, grid).pooler_output))
        (out * weights).sum().backward()
        results.append((out, [p.grad for p in each.model.visual.parameters()]))
    (expected, expected_grads), (got, got_grads) = results
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # rotary tables are float32
    for one, other in zip(got_grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_other_attention_implementations_are_left_alone(model):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    batch_windows(eager)
    assert all("forward" not in vars(module) for module in eager.modules())


def test_a_copy_of_the_model_attends_with_its_own_weights(model):
    batched = copy.deepcopy(model)
    batch_windows(batched)
    twin = copy.deepcopy(batched)
    with torch.no_grad():
        for parameter in twin.model.visual.parameters():
            parameter.zero_()
    patches = torch.randn(4, 3 * 2 * 14 * 14, dtype=torch.float64)
    grid = torch.tensor([[1, 2, 2]])
    ours = torch.cat(list(batched.model.get_video_features(patches, grid).pooler_output))
    theirs = torch.cat(list(twin.model.get_video_features(patches, grid).pooler_output))
    assert ours.abs().sum() > 0
    assert theirs.abs().sum() == 0
