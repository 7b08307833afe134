"""Tests that trunk and merger equal the vision tower, and that features can replace pixels."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny_policy import make_parts
from safetensors.torch import load_file, save_file

from tvg.data.video.sampling import FrameSampling
from tvg.model.families.qwen2_5_vl import window_order
from tvg.model.freezing import freeze_parts
from tvg.model.vision import encode_trunk, merge_features, trunk_fingerprint

# Frames of 5 x 9 merged tokens, which windows of 4 x 4 do not divide evenly.
WIDE = FrameSampling(min_pixels=28 * 28, max_pixels=45 * 28 * 28, max_frames=8)


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world, sampling=WIDE)


def test_window_order_of_a_small_frame():
    grid = torch.tensor([[1, 4, 6]])  # 2 x 3 merged tokens, windows of 2 x 2
    assert window_order(grid, spatial_merge=2, window_tokens=2).tolist() == [0, 1, 3, 4, 2, 5]


def test_window_order_keeps_two_clips_in_sequence():
    grid = torch.tensor([[2, 2, 6], [1, 4, 2]])
    order = window_order(grid, spatial_merge=2, window_tokens=2).tolist()
    assert order == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("grids", [[[3, 10, 18]], [[2, 10, 18], [1, 6, 4], [4, 2, 20]]])
def test_trunk_and_merger_equal_the_vision_tower(parts, grids):
    model = parts.policy.model
    grid = torch.tensor(grids)
    num_patches = int(grid.prod(-1).sum())
    pixels = torch.randn(num_patches, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.cat(list(model.model.get_video_features(pixels, grid).pooler_output))
        features = encode_trunk(model, pixels, grid)
        assert features.shape == (num_patches, 64)
        torch.testing.assert_close(
            merge_features(model, features).embeds, expected, atol=1e-6, rtol=1e-6
        )


def test_encoded_features_replace_pixels(parts):
    """Includes selected rows and a trained merger."""
    policy, prompts = parts.policy, parts.batch(3)
    freeze_parts(policy.model, vision=True, merger=False, language=False)
    encoded = policy.encode_clips(prompts)
    assert encoded.pixel_values_videos is None
    assert policy.encode_clips(encoded) is encoded
    expected = policy.embed_prompts(prompts)
    torch.testing.assert_close(policy.embed_prompts(encoded), expected, atol=1e-6, rtol=1e-6)
    part = policy.embed_prompts(encoded.rows(1, 3))
    torch.testing.assert_close(part, expected[1:], atol=1e-6, rtol=1e-6)
    part.square().sum().backward()
    assert policy.model.model.visual.merger.mlp[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in policy.model.model.visual.blocks.parameters())


def test_a_trained_trunk_is_not_run_in_advance(parts):
    freeze_parts(parts.policy.model, vision=False, merger=False, language=False)
    prompts = parts.batch(1)
    assert parts.policy.encode_clips(prompts) is prompts
    parts.policy.embed_prompts(prompts).sum().backward()
    assert parts.policy.model.model.visual.patch_embed.proj.weight.grad is not None


def test_a_float32_merger_accepts_half_precision_features(parts):
    freeze_parts(parts.policy.model, vision=True, merger=False, language=False)
    encoded = parts.policy.encode_clips(parts.batch(1))
    half = replace(encoded, video_features=encoded.video_features.bfloat16())
    got, expected = parts.policy.embed_prompts(half), parts.policy.embed_prompts(encoded)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0.05)


def test_the_fingerprint_depends_only_on_trunk_weights(tiny_checkpoint, tmp_path):
    weights = load_file(tiny_checkpoint / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny_checkpoint / "config.json").read_text())

    def with_change(part: str) -> str:
        name = next(name for name in weights if part in name)
        changed = {**weights, name: weights[name].clone()}
        if part:
            changed[name].view(-1)[-1] += 1e-3
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        return trunk_fingerprint(tmp_path)

    before = trunk_fingerprint(tiny_checkpoint)
    assert with_change("") == before
    assert with_change("visual.merger.mlp") == before
    assert with_change("embed_tokens") == before
    assert with_change("visual.blocks") != before


def test_a_folder_without_a_vision_tower_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(ValueError, match=r"model.path: .*vision tower"):
        trunk_fingerprint(tmp_path)
