"""Tests of LoRA adapters: adapted layers, trained parameters, the reference and exports."""

import copy
import json

import pytest
import torch
from helpers.tiny_lora import adapt, lora, make_lora_parts
from helpers.tiny_policy import make_rollout, sample_with
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from tvg.model.adapters import drop_adapters, merged_state
from tvg.model.exporting import export_checkpoint
from tvg.model.loading import ModelSource
from tvg.training.reference import frozen_copy


@pytest.fixture
def parts(tiny_checkpoint, tiny_world):
    return make_lora_parts(tiny_checkpoint, tiny_world)


def trained(policy):
    return {name for name, p in policy.named_parameters() if p.requires_grad}


def score(policy, batch):
    ids = torch.arange(20, 32).view(2 * len(batch), -1)
    with torch.no_grad():
        logprobs, _ = policy(batch, ids, torch.ones_like(ids), group_size=2, temperature=1.0)
    return logprobs


def test_only_adapters_of_the_language_model_are_trained(parts):
    layers = len(parts.policy.model.model.language_model.layers)
    names = trained(parts.policy)
    assert len(names) == layers * 7 * 2  # seven linear layers, A and B
    assert all(".language_model.layers." in n and ".lora_" in n for n in names)


def test_new_adapters_keep_outputs_and_follow_the_seed(tiny_checkpoint, tiny_world, parts):
    batch = parts.batch(2)
    plain = copy.deepcopy(parts.policy)
    drop_adapters(plain)
    assert torch.equal(score(parts.policy, batch), score(plain, batch))
    again = make_lora_parts(tiny_checkpoint, tiny_world).policy.state_dict()
    other = make_lora_parts(tiny_checkpoint, tiny_world, seed=1).policy.state_dict()
    mine = parts.policy.state_dict()
    assert all(torch.equal(mine[name], again[name]) for name in mine)
    differing = {name for name in mine if not torch.equal(mine[name], other[name])}
    assert differing == {name for name in mine if ".lora_A." in name}


def test_adding_adapters_keeps_the_global_random_state(tiny_checkpoint, tiny_world):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    make_lora_parts(tiny_checkpoint, tiny_world)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_adapters_output_is_scaled_by_alpha_over_rank(tiny_checkpoint, tiny_world):
    made = make_lora_parts(tiny_checkpoint, tiny_world, rank=2, alpha=6.0)
    adapt(made.policy)
    layer = made.policy.model.model.language_model.layers[0].self_attn.q_proj
    x = torch.randn(3, layer.in_features)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape[0] == b.shape[1] == 2
    by_hand = layer.base_layer(x) + 3.0 * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), by_hand, rtol=1e-6, atol=1e-6)


def test_the_reference_shares_the_base_weights_and_has_no_adapters(parts):
    batch = parts.batch(2)
    before = score(parts.policy, batch)
    reference = frozen_copy(parts.policy)
    adapt(parts.policy)
    assert not torch.allclose(score(parts.policy, batch), before, atol=1e-3)
    assert torch.equal(score(reference, batch), before)
    own = {id(p) for p in reference.parameters()} - {id(p) for p in parts.policy.parameters()}
    assert not own
    assert not any(p.requires_grad for p in reference.parameters())


def test_the_merged_export_is_plain_and_scores_the_same(parts, tiny_checkpoint, tmp_path):
    adapt(parts.policy)
    batch = parts.batch(2)
    expected = score(parts.policy, batch)
    kept = {name: value.clone() for name, value in parts.policy.state_dict().items()}
    folder = export_checkpoint(parts.policy, parts.processor, tmp_path / "export", notes={})
    now = parts.policy.state_dict()
    assert all(torch.equal(kept[name], now[name]) for name in kept)  # the policy is unchanged
    ours, base = (load_file(f / "model.safetensors") for f in (folder, tiny_checkpoint))
    assert {n: (v.shape, v.dtype) for n, v in ours.items()} == {
        n: (v.shape, v.dtype) for n, v in base.items()
    }
    spec = ModelSource(
        path=str(folder),
        create=None,
        dtype="float32",
        attn_implementation="sdpa",
        freeze_vision=False,
        freeze_merger=False,
        freeze_language=False,
        gradient_checkpointing=False,
        adapter=lambda model: None,
    )
    merged = spec.load_policy(spec.load_processor())
    # The export multiplies by W + B A, the policy by W and by B A, so the last digits differ.
    torch.testing.assert_close(score(merged, batch), expected, rtol=0, atol=2e-5)


def test_merging_rounds_once_to_the_dtype_of_the_weights(tiny_checkpoint, tiny_world):
    made = make_lora_parts(tiny_checkpoint, tiny_world, dtype="bfloat16")
    adapt(made.policy)
    layer = made.policy.model.model.language_model.layers[1].mlp.down_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.dtype == b.dtype == torch.float32
    exact = layer.base_layer.weight.double() + 2.0 * b.double() @ a.double()
    merged = merged_state(made.policy.model)["model.language_model.layers.1.mlp.down_proj.weight"]
    assert merged.dtype == torch.bfloat16
    assert float((merged.double() - exact).abs().max() / exact.abs().max()) < 2**-8


def test_peft_loads_the_adapters_on_the_base_model(parts, tiny_checkpoint, tmp_path):
    adapt(parts.policy)
    folder = export_checkpoint(parts.policy, parts.processor, tmp_path / "export", notes={})
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    assert config["base_model_name_or_path"] == str(tiny_checkpoint)
    assert len(config["target_modules"]) == 7 * len(parts.policy.model.model.language_model.layers)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert all("lora_" in n for n in load_file(folder / "adapter" / "adapter_model.safetensors"))
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint)
    loaded = PeftModel.from_pretrained(base, folder / "adapter").base_model.model
    mine = parts.policy.model.state_dict()
    theirs = loaded.state_dict()
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "changes",
    [
        {"full_components": ["merger"]},
        {"full_components": ["vision", "merger"]},
        {"components": ["vision", "merger", "language"], "target_modules": "all-linear"},
        {"components": ["merger"], "target_modules": ["mlp.0"], "full_components": ["vision"]},
    ],
    ids=["merger", "tower", "everywhere", "merger_adapted"],
)
def test_merging_with_peft_equals_the_merged_export(tiny_checkpoint, tiny_world, tmp_path, changes):
    made = make_lora_parts(tiny_checkpoint, tiny_world, **changes)
    adapt(made.policy)
    with torch.no_grad():
        for name, parameter in made.policy.named_parameters():
            if parameter.requires_grad and ".lora_" not in name:
                parameter.mul_(1.5)
    expected = score(made.policy, made.batch(2))
    folder = export_checkpoint(made.policy, made.processor, tmp_path / "export", notes={})
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint)
    theirs = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().state_dict()
    ours = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-6)
    drop_adapters(made.policy)
    made.policy.model.load_state_dict(ours.state_dict())
    torch.testing.assert_close(score(made.policy, made.batch(2)), expected, rtol=0, atol=2e-5)


def test_sampling_uses_the_adapters(parts):
    adapt(parts.policy)
    rollout, batch = make_rollout(), parts.batch(2)
    sampled = sample_with(
        rollout, policy=parts.policy, tokenizer=parts.tokenizer, prompts=batch, group_size=2, seed=0
    )
    with torch.no_grad():
        logprobs, _ = parts.policy(
            batch, sampled.completion_ids, sampled.completion_mask, group_size=2, temperature=1.0
        )
    torch.testing.assert_close(logprobs, sampled.sampler_logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rank": 0}, r"^model.adapter.rank: expected at least 1, got 0"),
        ({"alpha": 0.0}, r"^model.adapter.alpha: expected more than 0, got 0.0"),
        ({"dropout": 1.0}, r"^model.adapter.dropout: expected 0 <= dropout < 1, got 1.0"),
        ({"components": []}, r"^model.adapter.components: expected at least one component"),
        (
            {"components": ["eyes"]},
            r"^model.adapter.components: expected a list of vision, merger, language",
        ),
        ({"components": "language"}, r"^model.adapter.components: expected a list"),
        (
            {"full_components": ["language"]},
            r"^model.adapter.full_components: language is in model.adapter",
        ),
        ({"target_modules": "q_proj"}, r"^model.adapter.target_modules: expected a list .*q_proj"),
    ],
)
def test_settings_out_of_range_are_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        lora(**changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"target_modules": ["lm_head"]}, r"target_modules: 'lm_head' cannot be adapted"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"'embed_tokens' cannot be adapted"),
        (
            {"target_modules": ["qkv"]},
            r"called 'qkv'; expected any of down_proj, gate_proj, k_proj",
        ),
        (
            {"freeze_language": True},
            r"adapter.components: language .* model.freeze_language is true",
        ),
        (
            {"freeze_merger": True, "full_components": ["merger"]},
            r"adapter.full_components: merger .* model.freeze_merger is true",
        ),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    tiny_checkpoint, tiny_world, changes, problem
):
    with pytest.raises(ValueError, match=problem):
        make_lora_parts(tiny_checkpoint, tiny_world, **changes)
