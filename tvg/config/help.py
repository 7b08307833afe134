"""Lists the config groups that a command uses, for `--help`."""

from __future__ import annotations

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from tvg.config.compose import CONF_DIR
from tvg.config.words import options_of

# One line per group. Groups that are not listed are chosen by other keys and not shown.
DESCRIPTIONS = {
    "model": "the policy: family, checkpoint folder, precision, which parts are trained",
    "model/adapter": "LoRA adapters, or none",
    "data": "data set, or mixture: annotation files, videos, batch sizes",
    "data/cache": "cache that keeps decoded videos between runs",
    "data/decoder": "library that decodes videos",
    "data/clip": "frame sampling: rate, number and size of frames",
    "data/padding": "filler frames before a clip, which shift its times",
    "data/selection": "which training examples are used, by difficulty",
    "prompt": "text of the prompt, format of the answer, and parser",
    "reward": "how completions are scored; several: reward=[format,iou]",
    "objective": "training objective: supervised, or a kind of policy gradient",
    "objective/optimizer": "optimizer",
    "rollout": "how completions are sampled",
    "strategy": "how weights, gradients and optimizer states are distributed over devices",
    "trainer": "devices, precision, length of the run, validation",
    "logger": "where metrics are logged; several: logger=[mlflow,csv]",
    "callbacks": "additional actions during training; several: callbacks=[checkpoint,progress]",
    "experiment": "a complete recipe, which may choose any of the options above",
    "compat": "time_r1: computes results as the Time-R1 release does",
}


def register_help() -> None:
    """Registers `${command_groups:}`, which the template of `--help` uses."""
    OmegaConf.register_new_resolver("command_groups", command_groups, replace=True)


def command_groups(config_name: str) -> str:
    """Returns a list of the groups that the command uses, each with its options and a description.

    Args:
        config_name: the main config of the running command.
    """
    lines = []
    for group, key in _used_groups(config_name).items():
        if group not in DESCRIPTIONS:
            continue
        lines += [f"{key}: {', '.join(options_of(group))}", f"    {DESCRIPTIONS[group]}"]
    return "\n".join(lines)


def _used_groups(config_name: str) -> dict[str, str]:
    """Returns group -> the key that chooses it (data/clip@clip), in the order of `DESCRIPTIONS`."""
    main = yaml.safe_load((CONF_DIR / f"{config_name}.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in main["defaults"] if isinstance(entry, dict)]
    keys = [key for entry in entries for key in entry if not key.startswith("override ")]
    keys += [str(key) for key in HydraConfig.get().runtime.choices]  # including nested groups
    used: dict[str, str] = {}
    for key in keys:
        group, _, package = key.partition("@")
        is_own_package = package == group.replace("/", ".")  # model/adapter@model.adapter
        used.setdefault(group, group if is_own_package else key)
    order = list(DESCRIPTIONS)
    return dict(sorted(used.items(), key=lambda item: _rank(item[0], order)))


def _rank(group: str, order: list[str]) -> int:
    return order.index(group) if group in order else len(order)
