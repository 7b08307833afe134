"""Each kind of mistake in a config is found, named, and found together with the others."""

from __future__ import annotations

import sys

import pytest

from tvg.config import ConfigError, check, compose
from tvg.config.check import find_problems


def test_a_sound_config_has_no_problems(problems_of):
    assert problems_of() == []


def test_everything_is_reported_at_once(conf_dir):
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


def test_targets_are_imported_only_when_nothing_else_is_wrong(conf_dir, tmp_path, monkeypatch):
    (tmp_path / "costly_to_import.py").write_text("def thing(*, width): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["model._target_=costly_to_import.thing", "+model.widht=3"]
    cheap = find_problems(compose("train", [*words, "seed=???"], conf_dir=conf_dir))
    assert cheap == ["seed: a value is needed (seed=...)"]
    assert "costly_to_import" not in sys.modules
    costly = find_problems(compose("train", words, conf_dir=conf_dir))
    assert costly == ["model.widht: thing has no argument 'widht'; did you mean 'width'?"]


# --- keys that an experiment file smuggles in ---


def test_unknown_key_in_a_section(problems_of):
    assert problems_of("reward: {iou: {wieght: 2}}") == [
        "reward.iou.wieght: unknown key in experiment/e; did you mean 'weight'?"
    ]


def test_weight_of_a_reward_that_is_not_chosen(problems_of):
    assert problems_of("reward: {extra: {weight: 2}}")[0] == (
        "reward.extra: unknown key in experiment/e"
    )


def test_known_keys_of_the_options_that_the_experiment_chooses(problems_of):
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


def test_an_argument_that_only_the_signature_knows(problems_of):
    assert problems_of("model: {initial_indent: x}") == []


def test_a_new_component_is_no_typo(problems_of):
    assert problems_of("logger: {more: {_target_: calendar.TextCalendar}}") == []


def test_a_new_section_whose_keys_are_asked_for(problems_of):
    experiment = """
demo: {seed: 3, width: 5}
seed: ${demo.seed}
model:
  width: ${demo.width}
"""
    assert problems_of(experiment) == []


def test_a_new_section_with_a_key_that_nobody_asks_for(problems_of):
    assert problems_of("demo: {seed: 3, other: 5}\nseed: ${demo.seed}") == [
        "demo: unknown key in experiment/e"
    ]


def test_keys_added_on_the_command_line_are_meant(problems_of):
    assert problems_of("seed: 4", "+note=hello", "+reward.iou.comment=x") == []


def test_a_component_set_to_null_is_left_out(problems_of):
    assert problems_of("logger: {one: null}\nseed: 4") == []
    assert problems_of("seed: 4", "logger.one=null") == []


def test_an_option_written_as_a_value(problems_of):
    assert problems_of("model: big")[0] == (
        "model: experiment/e sets 'big' where a section is expected; choose an option in its "
        "defaults list: - override /model: big"
    )


def test_an_experiment_without_its_package_line(conf_dir):
    (conf_dir / "experiment").mkdir()
    (conf_dir / "experiment/e.yaml").write_text("seed: 3\n")
    with pytest.raises(ConfigError, match="# @package _global_"):
        check(compose("train", ["experiment=e"], conf_dir=conf_dir))


# --- values and targets ---


def test_missing_value_inside_a_component(problems_of):
    assert problems_of("", "model.width=???") == [
        "model.width: a value is needed (model.width=...)"
    ]


def test_an_interpolation_to_a_missing_value_is_reported_once(problems_of):
    assert problems_of("", "seed=???", "model.width=${seed}") == [
        "seed: a value is needed (seed=...)"
    ]


def test_an_option_without_target(problems_of):
    assert problems_of("", "model=bare") == ["model: the option model/bare has no _target_"]


def test_an_entry_of_a_collection_without_target(problems_of):
    assert problems_of("", "+logger.three.x=1") == ["logger.three: an entry needs a _target_"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_package.Thing", "No module named 'no_such_package'"),
        ("textwrap.TextWraper", "textwrap has no 'TextWraper'; did you mean 'TextWrapper'?"),
        ("textwrap.TextWrapper.nope", "TextWrapper has no attribute 'nope'"),
    ],
)
def test_targets_that_cannot_be_imported(problems_of, target, reason):
    assert problems_of("", f"model._target_={target}") == [
        f"model._target_: cannot import {target} ({reason})"
    ]


def test_a_target_that_is_no_function(problems_of):
    assert problems_of("", "model._target_=string.digits") == [
        "model._target_: string.digits is not callable"
    ]


def test_a_nested_component_has_to_be_complete(problems_of):
    nested = "model: {initial_indent: {_target_: string.Template}}"
    assert problems_of(nested) == ["model.initial_indent.template: Template needs this argument"]


def test_an_outermost_component_may_get_the_rest_when_it_is_built(problems_of):
    assert problems_of("logger: {more: {_target_: string.Template}}") == []


def test_a_module_that_cannot_import_what_it_needs(problems_of, tmp_path, monkeypatch):
    (tmp_path / "halfway").mkdir()
    (tmp_path / "halfway/__init__.py").write_text("")
    (tmp_path / "halfway/inner.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert problems_of("", "model._target_=halfway.inner.Thing") == [
        "model._target_: cannot import halfway.inner.Thing (No module named 'not_installed_here')"
    ]


def test_a_nested_factory_may_be_incomplete(problems_of):
    assert (
        problems_of("model: {initial_indent: {_target_: string.Template, _partial_: true}}") == []
    )


@pytest.mark.parametrize("loggers", ["[]", "one", "[one,two]", "two"])
def test_loggers_are_chosen_by_a_list_or_a_name(conf_dir, loggers):
    composed = compose("train", [f"logger={loggers}"], conf_dir=conf_dir)
    check(composed)
    assert sorted(composed.cfg.get("logger") or {}) == [
        name for name in ("one", "two") if name in loggers
    ]


def test_a_composed_config_outlives_the_composition(conf_dir):
    """As when a command composes the config of another one and runs it."""
    (conf_dir / "model/small.yaml").write_text(
        "_target_: textwrap.TextWrapper\ninitial_indent: ${hydra:runtime.output_dir}/x\n"
    )
    outer = compose("train", ["hydra.run.dir=runs/outer"], conf_dir=conf_dir).cfg
    inner = compose("train", ["hydra.run.dir=runs/inner"], conf_dir=conf_dir).cfg
    assert outer.model.initial_indent == "runs/outer/x"
    assert inner.model.initial_indent == "runs/inner/x"
