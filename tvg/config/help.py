"""The part of `--help` that lists the groups of options that a command uses."""

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
    "data/cache": "what is kept of decoded videos between runs",
    "data/decoder": "library that decodes videos",
    "data/clip": "frame sampling: rate, number and size of frames",
    "data/padding": "filler frames before a clip, which shift its times",
    "data/selection": "which training examples are used, by difficulty",
    "prompt": "text of the request, format of the answer, and how it is read",
    "reward": "what completions are scored by; several: reward=[format,iou]",
    "objective": "training objective: supervised, or a kind of policy gradient",
    "objective/optimizer": "optimizer",
    "rollout": "how completions are sampled",
    "strategy": "how weights, gradients and optimizer states are shared out among devices",
    "trainer": "devices, precision, length of the run, validation",
    "logger": "where metrics go; several: logger=[mlflow,csv]",
    "callbacks": "what accompanies training; several: callbacks=[checkpoint,progress]",
    "experiment": "a whole recipe, which may choose any of the options above",
    "compat": "time_r1: what that release computes differently",
}


def register_help() -> None:
    """Registers `${command_groups:}`, which the template of `--help` uses."""
    OmegaConf.register_new_resolver("command_groups", command_groups, replace=True)


def command_groups(config_name: str) -> str:
    """Lists each group that the command uses: its options, then a description.

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
    """Group -> the key that chooses it (data/clip@clip), in the order of `DESCRIPTIONS`."""
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
