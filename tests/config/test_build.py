"""Tests of `build`: arguments are passed unchanged, and errors name the config key."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf

from tvg.config import ConfigError, build


@dataclass(frozen=True)
class Part:
    size: int


def config(**nodes):
    return OmegaConf.create({"part": nodes})


def test_containers_become_plain_lists_and_dicts():
    built = build(config(_target_="builtins.dict", names=["a"], table={"x": 1}).part)
    assert type(built["names"]) is list
    assert type(built["table"]) is dict


def test_arguments_given_at_build_time_are_not_copied():
    part, table = Part(size=3), {"x": object()}
    built = build(config(_target_="builtins.dict", width=4).part, part=part, table=table)
    assert built["part"] is part
    assert built["table"] is table
    assert built["width"] == 4


def test_partial_accepts_arguments_now_and_later():
    part = Part(size=3)
    factory = build(config(_target_="builtins.dict", _partial_=True, a=1).part, part=part)
    assert factory(b=2) == {"a": 1, "part": part, "b": 2}
    assert factory(b=2)["part"] is part


def test_node_without_target_builds_its_children():
    built = build(config(one={"_target_": "builtins.dict", "a": 1}, two=2).part)
    assert built == {"one": {"a": 1}, "two": 2}


def test_user_error_names_the_key():
    node = config(_target_="fractions.Fraction", numerator="no number").part
    with pytest.raises(ConfigError, match=r"^part: Invalid literal for Fraction: 'no number'$"):
        build(node)
    with pytest.raises(ConfigError, match=r"^part: Invalid literal for Fraction: 'no'$"):
        build(config(_target_="fractions.Fraction").part, numerator="no")


def test_error_in_nested_node_names_the_inner_key():
    inner = {"_target_": "fractions.Fraction", "numerator": "no"}
    with pytest.raises(ConfigError, match=r"^part\.inner: Invalid literal"):
        build(config(_target_="builtins.dict", inner=inner).part)
    with pytest.raises(ConfigError, match=r"^part\.inner: Invalid literal"):
        build(config(_target_="builtins.dict", inner=inner).part, other=1)


def test_error_of_missing_file_names_the_key():
    with pytest.raises(ConfigError, match=r"^part: .*No such file.*nowhere"):
        build(config(_target_="os.listdir", path="nowhere").part)


def test_unexpected_error_keeps_its_type_and_names_the_key():
    with pytest.raises(TypeError) as caught:
        build(config(_target_="fractions.Fraction").part, numerator=object())
    assert "while building part" in caught.value.__notes__


def test_missing_target_names_the_key():
    with pytest.raises(ConfigError, match=r"^part: .*Nothing"):
        build(config(_target_="fractions.Nothing").part)


def test_parser_of_prompt_is_a_plain_partial():
    """Hydra's partial checks its target in every call, which takes 0.2 ms per completion."""
    import functools

    from helpers.tiny_policy import make_task

    node = {"_target_": "tvg.core.parsing.parse_answer", "_partial_": True}
    deferred = build(node)
    assert type(deferred) is not functools.partial
    task = make_task(parser=deferred)
    assert type(task.parser) is functools.partial
    assert task.parse("<answer>1.0 to 2.5</answer>").segment == (1.0, 2.5)
