"""The attention function is read from, and written to, where transformers looks for it."""

from transformers import Qwen2Config

from tvg.model.attention_choice import choose_attention, chosen_attention


def test_chosen_attention_is_the_one_written():
    config = Qwen2Config(attn_implementation="sdpa")
    assert chosen_attention(config) == "sdpa"
    choose_attention(config, "eager")
    assert chosen_attention(config) == "eager"
