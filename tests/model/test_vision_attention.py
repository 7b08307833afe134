"""Tests that batched window attention equals transformers' loop over the windows."""

import copy

import pytest
import torch
from helpers.family_oracles import ORACLES
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tvg.model.families import FAMILIES
from tvg.model.families.qwen_attention import batch_windows
from tvg.model.shape import shape_of


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
        [[2, 18, 26]],  # windows cut off at two edges: four shapes
        [[2, 8, 8], [1, 10, 4], [3, 2, 12]],
    ],
)
def test_outputs_and_gradients_equal_the_loop(model, grids):
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


def test_other_attention_implementations_are_unchanged(model):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    batch_windows(eager)
    assert all("forward" not in vars(module) for module in eager.modules())


def test_a_copied_model_attends_with_its_own_weights(model):
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


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_towers_of_other_families_equal_the_loop(family, tmp_path):
    """Includes a bias in the patch embedding and features of intermediate layers."""
    oracle = ORACLES[family]
    folder = oracle.write(
        tmp_path, seed=0, hidden_size=64, intermediate_size=64, num_layers=3, initializer_range=0.1
    )
    plain = FAMILIES[family].model_class.from_pretrained(folder, attn_implementation="sdpa")
    plain = plain.double().eval()
    batched = copy.deepcopy(plain)
    batch_windows(batched)
    assert any("forward" in vars(module) for module in batched.modules())
    assert not any("forward" in vars(module) for module in plain.modules())
    grid = torch.tensor([[2, 6, 10], [3, 2, 4]])
    values = shape_of(plain.config).patch_values
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(int(grid.prod(-1).sum()), values, generator=generator).double()
    results = []
    for each in (plain, batched):
        embeds, deepstack = oracle.tower(each, patches, grid)
        sum(tokens.square().sum() for tokens in (embeds, *deepstack)).backward()
        results.append((embeds, *deepstack, *(p.grad for p in each.model.visual.parameters())))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # as for Qwen2.5-VL
