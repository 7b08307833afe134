"""Tests that a model's attention implementation is set where transformers stores it."""

from transformers import Qwen2Config

from tvg.model.attention_choice import choose_attention, chosen_attention


def test_choose_attention_changes_the_chosen_attention():
    config = Qwen2Config(attn_implementation="sdpa")
    assert chosen_attention(config) == "sdpa"
    choose_attention(config, "eager")
    assert chosen_attention(config) == "eager"
