"""Tests that every shipped option and experiment passes the config check.

New files are included automatically. test_recipes.py tests the group compat.
"""

from __future__ import annotations

from functools import cache

import pytest
from hydra.errors import HydraException

from tvg.config import CONF_DIR, compose
from tvg.config.check import COLLECTIONS, find_problems
from tvg.config.compose import Composition

COMMANDS = sorted(path.stem for path in CONF_DIR.glob("*.yaml"))
NOT_COMPOSED_ALONE = {"compat", "experiment", "hydra"}
OPTIONS = sorted(
    str(path.relative_to(CONF_DIR).with_suffix(""))
    for path in CONF_DIR.rglob("*.yaml")
    if path.parent != CONF_DIR
    and path.relative_to(CONF_DIR).parts[0] not in NOT_COMPOSED_ALONE
    and not path.stem.startswith("_")  # bases of other options
)
# group -> package of its options, unless the package is the group's name
OTHER_PACKAGES = {"data/role": "data"}
OFFLOADED = ("strategy=deepspeed_zero2_offload", "objective/optimizer=adamw_cpu")
TOGETHER = {  # option -> overrides that it needs
    "strategy/deepspeed_zero2_offload": OFFLOADED,
    "objective/optimizer/adamw_cpu": OFFLOADED,
    "data/role/part": ("data=mix",),
    "data/cache/features": ("data/cache=features", "model.freeze_vision=true"),
    **{  # these rewards have weight 0, so a run needs another reward
        f"reward/{name}": (f"reward=[iou,{name}]",)
        for name in ("diversity", "keywords", "paragraphs", "think_length", "timesteps")
    },
}
EXPERIMENTS = sorted(
    str(path.relative_to(CONF_DIR / "experiment").with_suffix(""))
    for path in (CONF_DIR / "experiment").rglob("*.yaml")
)


@cache
def compose_once(command: str) -> Composition:
    return compose(command)


@cache
def groups(command: str) -> frozenset[str]:
    """Returns the command's groups whose options are in their usual package.

    This is the package in `OTHER_PACKAGES`, or otherwise the group's name.
    """
    return frozenset(
        group
        for entry in compose_once(command).entries
        for group in [entry.name.rpartition("/")[0]]
        if entry.package == OTHER_PACKAGES.get(group, group.replace("/", "."))
    )


def problems(command: str, *overrides: str) -> list[str]:
    """Returns the problems of a config, except values that the user must set."""
    try:
        found = find_problems(compose(command, overrides))
    except HydraException as error:
        return [str(error)]
    return [problem for problem in found if "a value is needed" not in problem]


@cache
def problems_once(command: str) -> tuple[str, ...]:
    return tuple(problems(command))


def test_shipped_configs_are_found():
    assert "train" in COMMANDS
    assert {"strategy/ddp", "trainer/default", "logger/mlflow"} <= set(OPTIONS)


@pytest.mark.parametrize("command", COMMANDS)
def test_default_config_of_command_has_no_problems(command):
    assert problems_once(command) == ()


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_option_has_no_problems(option, monkeypatch):
    # Pretend that all optional packages are installed.
    monkeypatch.setattr("tvg.core.limits.find_spec", lambda name: object())
    group, _, name = option.rpartition("/")
    commands = sorted((c for c in COMMANDS if group in groups(c)), key=lambda c: (c != "train", c))
    assert commands, f"no command has the config group conf/{group}"
    if any(entry.name == option for c in commands for entry in compose_once(c).entries):
        return  # a default, checked by the test of the command
    at = f"{group}@{OTHER_PACKAGES[group]}" if group in OTHER_PACKAGES else group
    choice = f"{at}=[{name}]" if group in COLLECTIONS else f"{at}={name}"
    words = TOGETHER.get(option, (choice,))
    new = set(problems(commands[0], *words)) - set(problems_once(commands[0]))
    assert not new


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_at_least_one_command_accepts_the_experiment(experiment):
    takers = [c for c in COMMANDS if "experiment:" in (CONF_DIR / f"{c}.yaml").read_text()]
    found = {c: problems(c, f"experiment={experiment}") for c in sorted(takers, key="train".__ne__)}
    assert [] in found.values(), found


@pytest.mark.parametrize("loggers", ["[]", "csv", "[mlflow,csv]", "[mlflow,csv,tensorboard]"])
def test_combination_of_loggers_has_no_problems(loggers):
    assert not set(problems("train", f"logger={loggers}")) - set(problems_once("train"))


def test_data_set_can_be_added_to_the_mixture():
    words = ["+data@data.sets.timerft=timerft", "+data.weights.timerft=0.5", "data=mix"]
    assert not set(problems("train", *words)) - set(problems_once("train"))
    cfg = compose("train", [*words, "data.on_missing=skip"]).cfg
    assert cfg.data.sets.timerft.train_file == "data/timer1/train_2k5.json"
    assert list(cfg.data.sets) == ["charades", "activitynet", "timerft"]


@pytest.mark.parametrize(
    ("command", "split"), [("train", "train"), ("evaluate", "test"), ("prepare", None)]
)
def test_default_annotation_split_depends_on_the_command(command, split):
    assert compose(command, ["data=charades"]).cfg.data.annotation_split == split


def test_annotation_split_follows_the_evaluated_split():
    assert compose("evaluate", ["split=val"]).cfg.data.annotation_split == "val"


@pytest.mark.parametrize("objective", ["grpo", "sft"])
def test_optimizer_options_keep_the_other_settings(objective):
    def optimizer(*words):
        reward = ["reward=[]"] if objective == "sft" else []
        return compose("train", [f"objective={objective}", *reward, *words]).cfg.objective.optimizer

    lr = {"grpo": 1e-6, "sft": 1e-5}[objective]
    plain = {"_partial_": True, "lr": lr, "betas": [0.9, 0.999], "weight_decay": 0.0}
    assert optimizer() == {"_target_": "torch.optim.AdamW", **plain}
    assert optimizer("objective/optimizer=adamw_fused") == {**optimizer(), "fused": True}
    eight = optimizer("objective/optimizer=adamw_8bit", "objective.optimizer.lr=3e-6")
    assert eight == {**plain, "_target_": "tvg.training.optimizers.adamw_8bit", "lr": 3e-6}
    on_cpu = optimizer(*OFFLOADED, "objective.optimizer.weight_decay=0.1")
    target = "deepspeed.ops.adam.DeepSpeedCPUAdam"
    assert on_cpu == {**plain, "_target_": target, "weight_decay": 0.1}
    sgd = optimizer("objective.optimizer._target_=torch.optim.SGD", "~objective.optimizer.betas")
    assert sgd == {"_target_": "torch.optim.SGD", "_partial_": True, "lr": lr, "weight_decay": 0.0}


def test_experiment_settings_apply_to_other_optimizers():
    cfg = compose("train", ["experiment=demo_grpo", "objective/optimizer=adamw_fused"]).cfg
    assert cfg.objective.optimizer.betas == [0.9, 0.99]
    assert cfg.objective.optimizer.lr == 2e-4
    assert cfg.objective.optimizer.fused is True
