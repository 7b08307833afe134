"""Tests of shared-prefix attention in a model, and of the model's usual attention."""

from copy import deepcopy

import pytest
import torch
from helpers.completions import LENGTHS, completions, learn, worst_errors
from helpers.tiny_policy import make_parts
from transformers import AttentionInterface

from tvg.model.loading import load_model, make_policy
from tvg.model.prefix_attention import NAME, share_prefix


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_models_attention_is_used_without_a_packed_row(tiny_checkpoint, parts, implementation):
    # In float32, because transformers' eager attention gives nan for padding in float64.
    model = load_model(tiny_checkpoint, torch.float32, implementation)
    policy = make_policy(model, parts.tokenizer, forward_by="shared_prefix")
    share_prefix(model)  # a second time changes nothing
    configs = [x.self_attn.tvg_config for x in model.model.language_model.layers]
    assert {config._attn_implementation for config in configs} == {implementation}
    results = [
        learn(policy, parts.batch(3), completions(LENGTHS), forward_by=way)
        for way in ("shared_prefix", "repeated")
    ]
    errors = worst_errors(*results)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("forward_by", ["shared_prefix", "repeated"])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_checkpointing_recomputes_every_layer_including_the_last(
    parts, forward_by, is_checkpointed
):
    policy = deepcopy(parts.policy)
    if is_checkpointed:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()
    calls = []
    for number, layer in enumerate(policy.model.model.language_model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    learn(policy, parts.batch(3), completions(LENGTHS), forward_by=forward_by)
    assert calls == ([0, 1, 1, 0] if is_checkpointed else [0, 1])


def test_unknown_forward_and_sliding_window_are_refused(parts):
    policy = deepcopy(parts.policy)
    with pytest.raises(ValueError, match=r"policy\.forward: .*'repeated', 'shared_prefix'.*'two'"):
        type(policy)(model=policy.model, suppressed_ids=[], eos_ids=[1], pad_id=0, forward_by="two")
    policy.model.model.language_model.layers[1].self_attn.sliding_window = 16
    with pytest.raises(ValueError, match="sliding-window"):
        share_prefix(policy.model)


def test_the_models_attention_finds_its_name_in_the_config(tiny_checkpoint, parts, monkeypatch):
    """For example, flash-attention is looked up by the name in the module's config."""
    model = load_model(tiny_checkpoint, torch.float32, "sdpa")
    policy = make_policy(model, parts.tokenizer, forward_by="repeated")
    seen = []
    own = AttentionInterface()["sdpa"]

    def spy(module, *states, **options):
        seen.append(module.config._attn_implementation)
        return own(module, *states, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", spy)
    learn(policy, parts.batch(3), completions(LENGTHS), forward_by="repeated")
    assert set(seen) == {"sdpa"}
    names = {x.self_attn.config._attn_implementation for x in model.model.language_model.layers}
    assert names == {NAME}


def test_attention_dropout_is_refused(parts):
    model = deepcopy(parts.policy.model)
    attention = model.model.language_model.layers[0].self_attn
    attention.config, attention.attention_dropout = attention.tvg_config, 0.1
    with pytest.raises(ValueError, match=r"attention_dropout.*0\.1"):
        share_prefix(model)
