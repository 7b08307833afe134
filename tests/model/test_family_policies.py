"""Tests of every family's policy against transformers' processor, forward and `generate`.

For Qwen2.5-VL and Qwen2-VL, the oracle receives our position ids, which follow the released code.
The position ids of transformers 5 are wrong after a clip with more time steps than rows or columns.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.completions import LENGTHS, completions, learn, worst_errors
from helpers.family_oracles import ORACLES, Oracle
from helpers.tiny_policy import Parts, make_parts, make_rollout, sample_with
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from tvg.data.video.sampling import FrameSampling
from tvg.model.exporting import export_checkpoint
from tvg.model.families import FAMILIES, family_of, mergers
from tvg.model.freezing import freeze_parts
from tvg.model.shape import count_parameters, shape_of
from tvg.model.vision import encode_trunk, merge_features, trunk_fingerprint
from tvg.rollout.shared_prefix import SharedPrefixEngine
from tvg.training.preflight import Preflight
from tvg.types import PromptBatch


@dataclass(frozen=True)
class Made:
    oracle: Oracle
    parts: Parts
    plain: Any  # the model as transformers loads it, without our changes

    @property
    def policy(self):
        return self.parts.policy

    @property
    def tower(self):
        return family_of(self.plain.config).tower(self.plain)


@pytest.fixture(scope="module", params=ORACLES)
def made(request, tmp_path_factory, tiny_world) -> Made:
    folder, oracle = tmp_path_factory.mktemp(request.param) / "tiny", ORACLES[request.param]
    oracle.write(
        folder,
        seed=0,
        hidden_size=128,
        intermediate_size=96,
        num_layers=3,
        initializer_range=0.1,
    )
    side = oracle.side
    frames = FrameSampling(min_pixels=side**2, max_pixels=6 * side**2, resize_factor=side)
    if oracle.is_square:
        pixels = (2 * side) ** 2
        frames = FrameSampling(min_pixels=pixels, max_pixels=pixels, resize_factor=2 * side)
    parts = make_parts(folder, tiny_world, sampling=frames)
    plain = FAMILIES[request.param].model_class.from_pretrained(folder, attn_implementation="sdpa")
    return Made(oracle, parts, plain.eval())


def alone(prompts: PromptBatch, row: int) -> tuple[PromptBatch, torch.Tensor]:
    """Returns one prompt and the mask of its tokens."""
    one = prompts.rows(row, row + 1)
    return one, one.attention_mask[0].bool()


def test_prompts_equal_the_familys_processor(made):
    prompts = made.parts.batch(3)
    for row in range(3):
        one, is_real = alone(prompts, row)
        expected = made.oracle.inputs(made.parts, row)
        assert torch.equal(one.input_ids[0, is_real], expected["input_ids"][0])
        got = made.oracle.vision(one.pixel_values_videos, one.video_grid_thw)
        assert all(torch.equal(value, expected[name]) for name, value in got.items())


def test_positions_equal_transformers_where_it_follows_the_release(made):
    """Up to the clip's end if transformers deviates from the release, otherwise everywhere."""
    prompts = made.parts.batch(3)
    for row in range(3):
        one, is_real = alone(prompts, row)
        inputs = made.oracle.inputs(made.parts, row)
        expected = made.oracle.positions(made.plain, inputs, one)
        got = made.policy.position_ids(one)[:, :, is_real]
        end = got.shape[-1] if made.oracle.is_released else video_end(made, one, is_real)
        assert torch.equal(got[..., :end], expected[..., :end])


def video_end(made: Made, one: PromptBatch, is_real: torch.Tensor) -> int:
    is_video = family_of(made.plain.config).is_video(made.plain.config, one.input_ids[0, is_real])
    return int(is_video.nonzero().max()) + 1


def test_text_after_a_clip_continues_after_the_largest_position(made):
    one, is_real = alone(made.parts.batch(1), 0)
    positions = made.policy.position_ids(one)[:, 0, is_real]
    end = video_end(made, one, is_real)
    assert positions[:, end].tolist() == [int(positions[:, :end].max()) + 1] * 3


def test_trunk_and_mergers_equal_the_vision_tower(made):
    grid = torch.tensor(
        [[2, 4, 4], [1, 2, 2]] if made.oracle.is_square else [[2, 10, 6], [1, 4, 4], [3, 2, 8]]
    )
    pixels = torch.randn(
        int(grid.prod(-1).sum()),
        shape_of(made.plain.config).patch_values,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        embeds, deepstack = made.oracle.tower(made.plain, pixels, grid)
        features = encode_trunk(made.policy.model, pixels, grid)
        got = merge_features(made.policy.model, features)
    family = family_of(made.plain.config)
    assert features.shape[1] == family.feature_width(made.plain.config.vision_config)
    torch.testing.assert_close(got.embeds, embeds, atol=1e-5, rtol=0)
    assert len(got.deepstack) == len(deepstack) == len(mergers(made.plain)) - 1
    for ours, theirs in zip(got.deepstack, deepstack, strict=True):
        # transformers 5.16 returns them flattened.
        torch.testing.assert_close(ours, theirs.view_as(ours), atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["shared_prefix", "repeated"])
def test_logprobs_equal_the_plain_model(made, way):
    prompts = made.parts.batch(3)
    rollout = sample_with(
        make_rollout(),
        policy=made.policy,
        tokenizer=made.parts.tokenizer,
        prompts=prompts,
        group_size=2,
        seed=0,
    )
    made.policy.forward_by = way
    with torch.no_grad():
        got, _ = made.policy(
            prompts,
            rollout.completion_ids,
            rollout.completion_mask,
            group_size=2,
            temperature=1.0,
        )
    logits = plain_logits(made, prompts, rollout.completion_ids)
    logits[..., made.policy.suppressed_ids] = -torch.inf
    chosen = logits.log_softmax(-1).gather(-1, rollout.completion_ids.unsqueeze(-1)).squeeze(-1)
    expected = chosen * rollout.completion_mask
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollout.sampler_logprobs, expected, atol=2e-5, rtol=0)


def plain_logits(made: Made, prompts: PromptBatch, completion_ids: torch.Tensor) -> torch.Tensor:
    """Returns logits [N, C, V] of transformers' forward pass with the video, row by row."""
    rows = []
    for n, ids in enumerate(completion_ids):
        one, is_real = alone(prompts, n // 2)
        positions = made.policy.position_ids(one)[:, :, is_real]
        after = positions[..., -1:] + 1 + torch.arange(len(ids))
        with torch.no_grad():
            out = made.plain(
                input_ids=torch.cat([one.input_ids[:, is_real], ids[None]], dim=1),
                **made.oracle.vision(one.pixel_values_videos, one.video_grid_thw),
                **made.oracle.given_positions(torch.cat([positions, after], dim=-1)),
            )
        rows.append(out.logits[0, -len(ids) - 1 : -1].float())
    return torch.stack(rows)


def test_greedy_sampling_equals_generate(made):
    """Our engines sample a padded batch; `generate` gets each prompt alone."""
    prompts = made.parts.batch(3)
    settings = {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "top_k": 0}
    engines = (make_rollout(**settings), SharedPrefixEngine(**settings, prompts_per_call=None))
    sampled = [
        sample_with(
            engine,
            policy=made.policy,
            tokenizer=made.parts.tokenizer,
            prompts=prompts,
            group_size=1,
            seed=0,
        )
        for engine in engines
    ]
    assert torch.equal(sampled[0].completion_ids, sampled[1].completion_ids)
    for row in range(3):
        one, is_real = alone(prompts, row)
        inputs = made.oracle.inputs(made.parts, row)
        if not made.oracle.is_released:
            ours = made.policy.position_ids(one)[:, :, is_real]
            inputs |= made.oracle.given_positions(ours)
        expected = made.plain.generate(
            **inputs,
            max_new_tokens=6,
            do_sample=False,
            suppress_tokens=made.policy.suppressed_ids.tolist(),
            eos_token_id=made.policy.eos_ids,
            pad_token_id=made.policy.pad_id,
        )[0, int(is_real.sum()) :]
        mine = sampled[0].completion_ids[row]
        assert torch.equal(mine[: len(expected)], expected)
        assert (mine[len(expected) :] == made.policy.pad_id).all()


@pytest.mark.parametrize("engine", ["hf", "shared_prefix"])
def test_the_preflight_passes(made, engine):
    settings = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    rollout = make_rollout(**settings)
    if engine == "shared_prefix":
        rollout = SharedPrefixEngine(**settings, prompts_per_call=None)
    made.policy.forward_by = "shared_prefix"
    preflight = Preflight(num_prompts=3, num_completions=2, max_abs_diff=1e-4, half_mean_diff=0.05)
    rollout.setup(policy=made.policy, tokenizer=made.parts.tokenizer)
    found = preflight.run(
        policy=made.policy,
        rollout=rollout,
        prompts=made.parts.batch(3),
        seed=0,
    )
    assert found < 1e-4


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("trunk", [False, True])
def test_gradients_of_shared_prefix_equal_repeated(made, trunk, is_checkpointed):
    """In float64, but transformers' norms and rotary embeddings compute in float32."""
    policy = deepcopy(made.policy).double()
    policy.requires_grad_(True)
    freeze_parts(policy.model, vision=not trunk, merger=False, language=False)
    if is_checkpointed:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train(is_checkpointed)
    batch, answers = made.parts.batch(3), completions(LENGTHS)
    assert (policy.encode_clips(batch).video_features is None) == trunk
    shared = learn(policy, batch, answers, forward_by="shared_prefix")
    repeated = learn(policy, batch, answers, forward_by="repeated")
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert shared.gradients.keys() == trained
    # A key bias without rotation cancels in the softmax, so its gradient is only rounding error.
    for name in [name for name, found in repeated.gradients.items() if float(found.norm()) < 1e-12]:
        assert "vision_tower" in name
        assert name.endswith("k_proj.bias")
        assert float(shared.gradients.pop(name).norm()) < 1e-12
        del repeated.gradients[name]
    errors = worst_errors(shared, repeated)
    assert errors["loss"] <= 1e-12, errors
    assert errors["logprobs"] <= 1e-12, errors
    assert errors["gradient"] <= 1e-6, errors
    assert all(float(gradient.abs().max()) > 0 for gradient in shared.gradients.values())


def test_all_mergers_are_trained_with_a_frozen_trunk(made):
    policy = deepcopy(made.policy)
    freeze_parts(policy.model, vision=True, merger=False, language=True)
    trained = {id(p) for p in policy.parameters() if p.requires_grad}
    assert trained == {id(p) for merger in mergers(policy.model) for p in merger.parameters()}
    counted = count_parameters(policy.model)
    assert (counted.is_trunk_trained, counted.is_merger_trained) == (False, True)
    assert not counted.is_head_trained
    freeze_parts(policy.model, vision=False, merger=True, language=True)
    counted = count_parameters(policy.model)
    assert (counted.is_trunk_trained, counted.is_merger_trained) == (True, False)


def test_encoded_features_replace_pixels_for_selected_rows(made):
    policy, prompts = deepcopy(made.policy), made.parts.batch(3)
    freeze_parts(policy.model, vision=True, merger=False, language=False)
    expected = policy.embed(prompts)
    encoded = policy.encode_clips(prompts)
    assert encoded.pixel_values_videos is None
    got = policy.embed(encoded.rows(1, 3))
    torch.testing.assert_close(got.embeds, expected.embeds[1:], atol=1e-5, rtol=0)
    num_first = int(expected.is_video[0].sum())
    for ours, theirs in zip(got.deepstack, expected.deepstack, strict=True):
        torch.testing.assert_close(ours, theirs[num_first:], atol=1e-5, rtol=0)


def test_the_shape_matches_the_models_modules(made):
    """Compares counts of matrix-product parameters with the modules' weights."""
    shape, model = shape_of(made.plain.config), made.plain
    merging = [p for m in mergers(model) for p in m.parameters() if p.ndim == 2]
    assert shape.merger_params == sum(p.numel() for p in merging)
    blocks = next(m for m in made.tower.modules() if isinstance(m, torch.nn.ModuleList))
    assert shape.vision_layers == len(blocks)
    weights = sum(p.numel() for p in blocks[0].parameters() if p.ndim == 2)
    assert shape.block_params == weights
    layer = model.model.language_model.layers[0]
    weights = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    assert shape.attention_params + shape.mlp_params == weights


def test_an_export_loads_with_transformers_alone(made, tmp_path):
    folder = export_checkpoint(made.policy, made.parts.processor, tmp_path / "export", notes={})
    model, info = type(made.plain).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in made.plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert type(AutoProcessor.from_pretrained(folder)) is type(made.parts.processor)


def test_the_fingerprint_depends_only_on_trunk_weights(made, tmp_path):
    """Changes tensors under their saved names, which may differ from the module tree."""
    folder = export_checkpoint(made.policy, made.parts.processor, tmp_path / "export", notes={})
    weights = load_file(folder / "model.safetensors")
    before = trunk_fingerprint(folder)
    merging = {p.data_ptr() for m in mergers(made.policy.model) for p in m.parameters()}
    model = made.policy.model
    parts = [family_of(model.config).tower(model), *mergers(model)]
    values = list({p.data_ptr(): p for part in parts for p in part.parameters()}.items())
    for pointer, value in values:
        if value.ndim < 2:  # biases and gains are all equal before training
            continue
        (name,) = (n for n, saved in weights.items() if saved.equal(value))
        changed = {**weights, name: weights[name] + 1e-3}
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        assert (trunk_fingerprint(folder) == before) == (pointer in merging), name
