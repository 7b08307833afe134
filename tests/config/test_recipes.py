"""Tests of recipes: published settings, memory on 8 GPUs, and composition with compat=time_r1."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers.recipes import RECIPES
from helpers.sizes import write_config

from tvg.config import CONF_DIR, compose
from tvg.config.check import find_problems
from tvg.config.compose import Composition
from tvg.config.nodes import plain
from tvg.estimate.from_config import make_job
from tvg.estimate.lines import total
from tvg.estimate.memory import estimate
from tvg.estimate.text import GIB, USABLE

PUBLISHED = {
    # rewards, KL weight, epochs, max_new_tokens, frozen (vision, merger, language), save interval
    "timezero_charades": ({"format", "iou"}, 0.04, 1, 1024, (True, True, False), 50),
    "timezero_activitynet": ({"format", "iou"}, 0.04, 1, 1024, (True, True, False), 50),
    "timer1_ft_charades": ({"format", "iou"}, 0.0, 2, 1024, (True, False, False), 100),
    "timer1_ft_activitynet": ({"format", "iou"}, 0.0, 2, 1024, (True, False, False), 100),
    "timer1_rl": ({"format", "iou_v2"}, 0.04, 5, 200, (True, False, False), 50),
    "timer1_rl_filtering": ({"format", "iou_v2"}, 0.04, 5, 200, (True, False, False), 50),
}


@pytest.fixture(scope="module")
def config_7b(tmp_path_factory) -> Path:
    """Writes the config.json of the released 7B checkpoint, without weights."""
    return write_config(tmp_path_factory.mktemp("7b"), "7b")


@pytest.fixture(scope="module")
def composed(config_7b) -> Callable[..., Composition]:
    """Returns a function that composes a recipe for 8 GPUs, once per name and compat."""

    @cache
    def once(recipe: str, compat: str) -> Composition:
        words = [f"experiment={recipe}", f"compat={compat}", f"model.path={config_7b}"]
        return compose("train", [*words, "trainer.devices=8"])

    return once


def test_all_published_recipes_exist():
    assert set(RECIPES) >= {*PUBLISHED, "sft", "sft_lora", "timelens_rlvr"}


@pytest.mark.parametrize("compat", ["none", "time_r1"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_passes_the_config_check(composed, recipe, compat):
    assert find_problems(composed(recipe, compat)) == []


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_recipe_has_the_published_settings(composed, recipe):
    cfg = composed(recipe, "none").cfg
    rewards, kl_coef, epochs, max_new_tokens, frozen, every = PUBLISHED[recipe]
    assert set(cfg.reward) == rewards
    assert all(node.weight == 1.0 for node in cfg.reward.values())
    assert cfg.objective.loss.kl_coef == kl_coef
    assert (cfg.trainer.max_epochs, cfg.trainer.max_steps) == (epochs, -1)
    assert cfg.rollout.max_new_tokens == max_new_tokens
    model = cfg.model
    assert (model.freeze_vision, model.freeze_merger, model.freeze_language) == frozen
    assert cfg.callbacks.checkpoint.every_n_train_steps == every
    assert cfg.objective.group_size == 8
    assert (cfg.rollout.temperature, cfg.rollout.top_k, cfg.rollout.top_p) == (1.0, 0, 1.0)
    assert (cfg.objective.loss.clip_low, cfg.objective.loss.clip_high) == (0.2, 0.2)
    assert (cfg.objective.optimizer.lr, cfg.objective.schedule.name) == (1e-6, "linear")
    assert (cfg.data.batch_size, cfg.objective.micro_batch_size) == (2, 1)
    reduction = "sequence_mean" if recipe.startswith("timezero") else "token_mean"
    assert cfg.objective.loss.reduction == reduction
    assert cfg.data.name == {"charades": "charades", "activitynet": "activitynet"}.get(
        recipe.rpartition("_")[2], "timerft"
    )


@pytest.mark.parametrize("compat", ["none", "time_r1"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_fits_eight_80_gb_gpus(composed, recipe, compat):
    job = make_job(composed(recipe, compat).cfg, clip_s=None)
    assert (job.sharding.devices, job.sharding.stage) == (8, 2)
    needed = total(estimate(job))
    assert 15 * GIB < needed < 80 * USABLE * GIB  # 15 GiB: the weights alone


PARSERS = ("tvg.core.parsing.parse_answer", "tvg.core.parsing_time_r1.parse_answer")


def switched(command: str, *words: str) -> dict[str, tuple[Any, Any]]:
    """Returns key -> (value with compat=none, value with compat=time_r1) where they differ."""

    def flat(compat: str) -> dict[str, Any]:
        cfg = compose(command, [*words, f"compat={compat}", "run_dir=x", "name=x"]).cfg
        found: dict[str, Any] = {}

        def walk(node: Any, path: str) -> None:
            if isinstance(node, dict):
                for key, child in node.items():
                    walk(child, f"{path}.{key}" if path else key)
            else:
                found[path] = node

        walk(plain(cfg), "")
        return found

    ours, theirs = flat("none"), flat("time_r1")
    keys = ours.keys() | theirs.keys()
    return {
        key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)
    }


def test_compat_changes_exactly_these_training_keys():
    words = ["reward=[iou_v2]", "callbacks=[sample_filtering]"]
    assert switched("train", "prompt=think", *words) == {
        "prompt.parser._target_": PARSERS,
        "prompt.system": ("You are a helpful assistant.", None),
        "prompt.video_first": (True, False),
        "prompt.lowercase": (False, True),
        "data.use_windows": (True, False),
        "compat": ("none", "time_r1"),
        "objective.loss.reduction": ("token_mean", "group_token_mean"),
        "policy.scoring_fps": (None, 2.0),
        "policy.sampler_may_cut": (False, True),
        "rollout.top_k": (0, 50),
        "prompt.query_blanks": ("strip", "before_period"),
        "prompt.rate_any_numbers": (False, True),
        "reward.iou_v2.reward.duration": ("clip", "annotation"),
        "callbacks.sample_filtering.max_new_tokens": (None, 1024),
    }


def test_compat_averages_the_loss_within_each_group():
    for compat, reduction in (("none", "token_mean"), ("time_r1", "group_token_mean")):
        cfg = compose("train", ["experiment=timer1_rl", f"compat={compat}"]).cfg
        assert cfg.objective.loss.reduction == reduction


def test_compat_changes_exactly_these_evaluation_keys():
    assert switched("evaluate", "model.path=x", "prompt=think") == {
        "prompt.parser._target_": PARSERS,
        "prompt.strip_period": (True, False),
        "prompt.query_blanks": ("strip", "keep"),
        "prompt.rate_any_numbers": (False, True),
        "evaluate.strict_recall": (False, True),
        "compat": ("none", "time_r1"),
    }


def test_top_k_sampling_is_refused_by_default_and_accepted_with_compat():
    (problem,) = find_problems(compose("train", ["rollout.top_k=50"]))
    assert problem.startswith("rollout.top_k: must be 0 with objective.group_size, got 50")
    assert find_problems(compose("train", ["compat=time_r1"])) == []
    (greedy,) = find_problems(compose("train", ["compat=time_r1", "rollout.temperature=0.0"]))
    assert greedy.startswith("rollout.temperature")


# -- experiments/paper/README.md ------------------------------------------------------------------


def commands_of_the_papers() -> list[tuple[str, list[str]]]:
    """Returns (command, overrides) of every command of the page; for a sweep, of its first run."""
    text = (CONF_DIR.parent / "experiments" / "paper" / "README.md").read_text(encoding="utf-8")
    short = dict(re.findall(r"`(\$\w+)` is\s+`([^`]+)`", text))
    assert sorted(short) == ["$BASE", "$E"]
    found = []
    for span in re.findall(r"`tvg-([^`]+)`", text):
        for name, meaning in short.items():
            span = re.sub(rf"\{name}\b", meaning, span)
        command, *words = shlex.split(span)
        if words:
            is_sweep = words[0] == "-m"
            words = [w.partition(",")[0] for w in words[1:]] if is_sweep else words
            found.append((command, words))
    return found


def cut(word: str) -> tuple[str, str, str]:
    return word.partition("=")


def test_documented_commands_use_existing_options():
    commands = commands_of_the_papers()
    assert len(commands) > 40
    words = {word for _, found in commands for word in found}
    assert not any("$" in word for word in words)
    for word in words:
        group, _, option = cut(word)
        if group in ("experiment", "model", "data", "prompt", "data/clip", "data/selection"):
            assert (CONF_DIR / group / f"{option}.yaml").is_file(), word
    assert {w.removeprefix("experiment=") for w in words if w.startswith("experiment=")} == {
        *RECIPES
    }


@pytest.mark.slow
def test_documented_commands_pass_the_config_check():
    fixed = {"model.path": "x", "run_dir": "y"}
    # Commands that differ only in these paths are checked once.
    tried = {
        (command, *(f"{key}={fixed.get(key, value)}" for key, _, value in map(cut, words)))
        for command, words in commands_of_the_papers()
    }
    for command, *words in tried:
        assert find_problems(compose(command, words)) == [], (command, words)
