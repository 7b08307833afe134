"""Tests of the config check: it finds each kind of mistake and reports all mistakes together."""

from __future__ import annotations

import sys

import pytest

from tvg.config import ConfigError, check, compose
from tvg.config.check import find_problems


def test_valid_config_has_no_problems(problems_of):
    assert problems_of() == []


def test_all_problems_are_reported_together(conf_dir):
    (conf_dir / "experiment").mkdir()
    (conf_dir / "experiment/e.yaml").write_text(
        "# @package _global_\nsede: 3\nrun_dir: ${nowhere}\n"
    )
    with pytest.raises(ConfigError) as caught:
        check(compose("train", ["experiment=e", "seed=???"], conf_dir=conf_dir))
    assert list(caught.value.problems) == [
        "sede: unknown key in experiment/e; did you mean 'seed'?",
        "seed: a value is needed (seed=...)",
        "run_dir: ${nowhere} cannot be resolved (Interpolation key 'nowhere' not found)",
    ]
    assert str(caught.value).startswith("3 problems in the configuration:\n  - sede: unknown key")


def test_targets_are_imported_only_without_other_problems(conf_dir, tmp_path, monkeypatch):
    (tmp_path / "costly_to_import.py").write_text("def thing(*, width): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["model._target_=costly_to_import.thing", "+model.widht=3"]
    cheap = find_problems(compose("train", [*words, "seed=???"], conf_dir=conf_dir))
    assert cheap == ["seed: a value is needed (seed=...)"]
    assert "costly_to_import" not in sys.modules
    costly = find_problems(compose("train", words, conf_dir=conf_dir))
    assert costly == ["model.widht: thing has no argument 'widht'; did you mean 'width'?"]


# --- keys of an experiment file ---


def test_unknown_key_in_section_is_reported(problems_of):
    assert problems_of("reward: {iou: {wieght: 2}}") == [
        "reward.iou.wieght: unknown key in experiment/e; did you mean 'weight'?"
    ]


def test_weight_of_unselected_reward_is_reported(problems_of):
    assert problems_of("reward: {extra: {weight: 2}}")[0] == (
        "reward.extra: unknown key in experiment/e"
    )


def test_keys_of_options_chosen_by_experiment_are_accepted(problems_of):
    experiment = """
defaults:
  - override /model: big
  - override /reward: [iou, extra]
  - override /logger: [two]
seed: 4
model: {width: 9}
reward: {extra: {weight: 2}}
"""
    assert problems_of(experiment) == []


def test_argument_from_the_signature_is_accepted(problems_of):
    assert problems_of("model: {initial_indent: x}") == []


def test_new_component_is_accepted(problems_of):
    assert problems_of("logger: {more: {_target_: calendar.TextCalendar}}") == []


def test_new_section_is_accepted_if_all_keys_are_used(problems_of):
    experiment = """
demo: {seed: 3, width: 5}
seed: ${demo.seed}
model:
  width: ${demo.width}
"""
    assert problems_of(experiment) == []


def test_new_section_with_unused_key_is_reported(problems_of):
    assert problems_of("demo: {seed: 3, other: 5}\nseed: ${demo.seed}") == [
        "demo: unknown key in experiment/e"
    ]


def test_keys_added_on_the_command_line_are_accepted(problems_of):
    assert problems_of("seed: 4", "+note=hello", "+reward.iou.comment=x") == []


def test_component_set_to_null_is_accepted(problems_of):
    assert problems_of("logger: {one: null}\nseed: 4") == []
    assert problems_of("seed: 4", "logger.one=null") == []


def test_option_written_as_a_value_is_reported(problems_of):
    assert problems_of("model: big")[0] == (
        "model: experiment/e sets 'big' where a section is expected; choose an option in its "
        "defaults list: - override /model: big"
    )


def test_experiment_without_package_line_is_reported(conf_dir):
    (conf_dir / "experiment").mkdir()
    (conf_dir / "experiment/e.yaml").write_text("seed: 3\n")
    with pytest.raises(ConfigError, match="# @package _global_"):
        check(compose("train", ["experiment=e"], conf_dir=conf_dir))


# --- values and targets ---


def test_missing_value_in_component_is_reported(problems_of):
    assert problems_of("", "model.width=???") == [
        "model.width: a value is needed (model.width=...)"
    ]


def test_interpolation_of_missing_value_is_reported_once(problems_of):
    assert problems_of("", "seed=???", "model.width=${seed}") == [
        "seed: a value is needed (seed=...)"
    ]


def test_option_without_target_is_reported(problems_of):
    assert problems_of("", "model=bare") == ["model: the option model/bare has no _target_"]


def test_collection_entry_without_target_is_reported(problems_of):
    assert problems_of("", "+logger.three.x=1") == ["logger.three: an entry needs a _target_"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_package.Thing", "No module named 'no_such_package'"),
        ("textwrap.TextWraper", "textwrap has no 'TextWraper'; did you mean 'TextWrapper'?"),
        ("textwrap.TextWrapper.nope", "TextWrapper has no attribute 'nope'"),
    ],
)
def test_target_that_cannot_be_imported_is_reported(problems_of, target, reason):
    assert problems_of("", f"model._target_={target}") == [
        f"model._target_: cannot import {target} ({reason})"
    ]


def test_target_that_is_not_callable_is_reported(problems_of):
    assert problems_of("", "model._target_=string.digits") == [
        "model._target_: string.digits is not callable"
    ]


def test_missing_argument_of_nested_component_is_reported(problems_of):
    nested = "model: {initial_indent: {_target_: string.Template}}"
    assert problems_of(nested) == ["model.initial_indent.template: Template needs this argument"]


def test_outermost_component_may_lack_arguments(problems_of):
    assert problems_of("logger: {more: {_target_: string.Template}}") == []


def test_failing_import_inside_a_module_is_reported(problems_of, tmp_path, monkeypatch):
    (tmp_path / "halfway").mkdir()
    (tmp_path / "halfway/__init__.py").write_text("")
    (tmp_path / "halfway/inner.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert problems_of("", "model._target_=halfway.inner.Thing") == [
        "model._target_: cannot import halfway.inner.Thing (No module named 'not_installed_here')"
    ]


def test_nested_partial_may_lack_arguments(problems_of):
    assert (
        problems_of("model: {initial_indent: {_target_: string.Template, _partial_: true}}") == []
    )


@pytest.mark.parametrize("loggers", ["[]", "one", "[one,two]", "two"])
def test_loggers_can_be_a_list_or_a_name(conf_dir, loggers):
    composed = compose("train", [f"logger={loggers}"], conf_dir=conf_dir)
    check(composed)
    assert sorted(composed.cfg.get("logger") or {}) == [
        name for name in ("one", "two") if name in loggers
    ]


def test_composed_config_keeps_its_values(conf_dir):
    """Composing a second config does not change the first one (the demo does this)."""
    (conf_dir / "model/small.yaml").write_text(
        "_target_: textwrap.TextWrapper\ninitial_indent: ${hydra:runtime.output_dir}/x\n"
    )
    outer = compose("train", ["hydra.run.dir=runs/outer"], conf_dir=conf_dir).cfg
    inner = compose("train", ["hydra.run.dir=runs/inner"], conf_dir=conf_dir).cfg
    assert outer.model.initial_indent == "runs/outer/x"
    assert inner.model.initial_indent == "runs/inner/x"
