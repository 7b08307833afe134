"""Tests that texts on the command line keep their characters, and that quoting advice works."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tvg.config.words import unreadable_value, with_literal_texts

PARSER = OverridesParser.create()


def value_of(word: str) -> str:
    cfg = OmegaConf.create({"query": None})
    OmegaConf.update(cfg, "query", PARSER.parse_override(word).value())
    return cfg.query


@pytest.mark.parametrize(
    "text",
    [
        "the ball, then the cup",
        "pays ${price}",
        "pays ${price",
        "null",
        "1e3",
        "",
        "a = b: [c] {d} (e) #f ~g",
        'she says "no", and won\'t',
        "C:\\clips\\",
    ],
)
def test_text_keeps_its_characters(text):
    (word,) = with_literal_texts([f"query={text}"], ["query"])
    assert value_of(word) == text


@given(st.text(alphabet=list("a ,=:\\\"'${}[]()#~?1eé\n\t."), max_size=12))
def test_any_text_keeps_its_characters(text):
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if not is_quoted and text != "???":
        (word,) = with_literal_texts([f"query={text}"], ["query"])
        assert value_of(word) == text


@pytest.mark.parametrize(
    "words",
    [
        ["query='a, b'"],
        ['query="a, b"'],
        ["query=???"],
        ["seed=1,2", "--help", "window=[1,2]"],
        ["-m", "query=a,b"],
    ],
)
def test_quoted_values_sweeps_and_other_keys_are_unchanged(words):
    assert with_literal_texts(words, ["query"]) == words


@pytest.mark.parametrize("text", ["it's a) b", 'he says "hi), you', "back\\slash)", "a (b"])
def test_quoting_advice_can_be_pasted_into_a_shell(text):
    with pytest.raises(OverrideParseException) as caught:
        PARSER.parse_overrides([f"query={text}"])
    advice = unreadable_value(caught.value).partition("quote it twice: ")[2]
    (word,) = shlex.split(advice)
    assert value_of(word) == text
