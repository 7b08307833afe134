"""Rules for trained weights, objective, sampler and rewards."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from tvg.config.targets import locate
from tvg.config.values import Config, Rule, number, value
from tvg.core.limits import (
    ADAPTER,
    PARTS,
    frozen_adapter_problems,
    frozen_model_problems,
    group_size_problems,
    model_path_problems,
    reference_problems,
    schedule_problems,
    untrained_rate_problems,
)
from tvg.core.reward_names import reward_name_problems

# -- weights ---------------------------------------------------------------------------------------


def is_adapted(cfg: Config) -> bool:
    """Returns whether adapters are trained instead of the model's own weights."""
    return bool(value(cfg, "model.adapter.components"))


def frozen_parts(cfg: Config) -> set[str]:
    """Returns the parts of the model whose own weights `model.freeze_*` freezes."""
    return {part for part in PARTS if value(cfg, f"model.freeze_{part}") is True}


def adapted_parts(cfg: Config) -> dict[str, list[str]]:
    """Returns the parts that each key of `model.adapter` names; empty without adapters."""
    if not is_adapted(cfg):
        return {}
    chosen = {key: value(cfg, f"model.adapter.{key}") for key in ("components", "full_components")}
    return {key: parts for key, parts in chosen.items() if isinstance(parts, list)}


def trained_parts(cfg: Config) -> set[str]:
    """Returns the parts of the model whose own weights or adapters are trained."""
    if is_adapted(cfg):
        return {part for parts in adapted_parts(cfg).values() for part in parts}
    return set(PARTS) - frozen_parts(cfg)


def no_model(cfg: Config) -> list[str]:
    """See `model_path_problems`. Missing keys are reported elsewhere."""
    model = value(cfg, "model")
    if not isinstance(model, Mapping) or "path" not in model or "create" not in model:
        return []
    return model_path_problems(
        has_path=model["path"] is not None, can_create=model["create"] is not None
    )


def nothing_to_train(cfg: Config) -> list[str]:
    """See `frozen_model_problems`."""
    return frozen_model_problems(frozen_parts(cfg)) if value(cfg, "objective") else []


def frozen_part_to_be_trained(cfg: Config) -> list[str]:
    """See `frozen_adapter_problems`."""
    return frozen_adapter_problems(adapted_parts(cfg), frozen_parts(cfg))


def dropout_beside_a_sampler(cfg: Config) -> list[str]:
    """Dropout must be 0 with GRPO: the trainer would apply it, but the sampler does not."""
    dropout = number(cfg, "model.adapter.dropout")
    if not dropout or number(cfg, "objective.group_size") is None:
        return []
    return [
        f"model.adapter.dropout: must be 0 with objective.group_size, got {dropout:g}: the sampler "
        "uses no dropout, so the trainer would score another distribution"
    ]


def features_of_a_trained_trunk(cfg: Config) -> list[str]:
    """Cached features require a vision encoder that never changes."""
    is_kept = str(value(cfg, "data.cache._target_", "")).endswith("FeatureCache")
    if not is_kept or value(cfg, "objective") is None or "vision" not in trained_parts(cfg):
        return []
    why = (
        "model.adapter trains vision"
        if is_adapted(cfg)
        else f"model.freeze_vision is {value(cfg, 'model.freeze_vision')}"
    )
    return [
        f"data.cache: cached features need a frozen vision encoder, but {why}: use "
        "data/cache=frames, or freeze the encoder"
    ]


def rate_of_a_frozen_part(cfg: Config) -> list[str]:
    """See `untrained_rate_problems`."""
    rates = value(cfg, "objective.component_lr")
    if not isinstance(rates, Mapping) or value(cfg, "model") is None:
        return []
    if is_adapted(cfg):
        return untrained_rate_problems(
            rates, {ADAPTER, *adapted_parts(cfg).get("full_components", ())}
        )
    return untrained_rate_problems(rates, trained_parts(cfg))


# -- objective, prompt and sampler -----------------------------------------------------------------


def samples_groups(cfg: Config) -> bool:
    """Returns whether the objective trains on sampled completions (GRPO and related ones)."""
    return number(cfg, "objective.group_size") is not None


def group_of_one(cfg: Config) -> list[str]:
    """See `group_size_problems`."""
    size = number(cfg, "objective.group_size")
    return [] if size is None else group_size_problems(size)


def micro_batch_over_batch(cfg: Config) -> list[str]:
    """A micro-batch cannot be larger than the batch; both count prompts per GPU."""
    micro, batch = number(cfg, "objective.micro_batch_size"), number(cfg, "data.batch_size")
    if micro is None or batch is None or micro <= batch:
        return []
    return [
        f"objective.micro_batch_size: {micro:g} prompts per pass, but data.batch_size is only "
        f"{batch:g} per step"
    ]


def kl_without_reference(cfg: Config) -> list[str]:
    """See `reference_problems`."""
    weight = number(cfg, "objective.loss.kl_coef")
    return reference_problems(weight or 0, value(cfg, "objective.reference", "initial"))


def nothing_to_imitate(cfg: Config) -> list[str]:
    """Supervised training needs an answer format, which multiple-choice prompts do not have."""
    if samples_groups(cfg) or value(cfg, "objective") is None:
        return []
    prompt = value(cfg, "prompt")
    if not isinstance(prompt, Mapping) or prompt.get("answer_format", "") is not None:
        return []
    return ["prompt.answer_format: supervised training needs a format, but this prompt has null"]


def sampler_is_not_policy(cfg: Config) -> list[str]:
    """Without policy.sampler_may_cut, the sampler must use the complete softmax."""
    if not samples_groups(cfg):
        return []
    problems = []
    why = (
        "the trainer scores the complete distribution, so the sampler must use it, too "
        "(policy.sampler_may_cut=true allows the difference)"
    )
    top_p, top_k = number(cfg, "rollout.top_p"), number(cfg, "rollout.top_k")
    temperature = number(cfg, "rollout.temperature")
    may_cut = value(cfg, "policy.sampler_may_cut") is True  # set by compat=time_r1
    if top_p is not None and top_p < 1 and not may_cut:
        problems.append(f"rollout.top_p: must be 1.0 with objective.group_size, got {top_p}: {why}")
    if top_k is not None and top_k > 0 and not may_cut:
        problems.append(f"rollout.top_k: must be 0 with objective.group_size, got {top_k}: {why}")
    if temperature is not None and temperature <= 0:
        problems.append(
            "rollout.temperature: must be above 0 with objective.group_size: greedy completions of "
            "a group are all equal, so there is nothing to learn"
        )
    return problems


def schedule_longer_than_run(cfg: Config) -> list[str]:
    """See `schedule_problems`."""
    steps = number(cfg, "trainer.max_steps")
    return schedule_problems(
        value(cfg, "objective.schedule.name"),
        number(cfg, "objective.schedule.warmup_steps"),
        steps if steps is not None and steps > 0 else None,
    )


# -- rewards ---------------------------------------------------------------------------------------


def no_reward(cfg: Config) -> list[str]:
    """Policy-gradient training needs a reward with a weight other than 0."""
    if not samples_groups(cfg):
        return []
    rewards = value(cfg, "reward") or {}
    weights = {name: number(rewards, f"{name}.weight") for name in rewards}
    if any(weight != 0 for weight in weights.values()):
        return []
    found = "every weight is 0" if weights else "none is chosen (reward=[format,iou])"
    return [f"reward: policy-gradient training needs a reward, but {found}"]


def reward_without_weight(cfg: Config) -> list[str]:
    """Every reward needs a weight."""
    rewards = value(cfg, "reward")
    if not isinstance(rewards, Mapping):
        return []
    return [
        f"reward.{name}.weight: expected a number (0: only logged), got {entry.get('weight')!r}"
        for name, entry in rewards.items()
        if isinstance(entry, Mapping) and number(entry, "weight") is None
    ]


def format_reward_out_of_reach(cfg: Config) -> list[str]:
    """The format reward must expect a think block exactly if the prompt requests one."""
    think, asked = value(cfg, "reward.format.reward.think"), value(cfg, "prompt.think")
    if not isinstance(think, bool) or not isinstance(asked, bool) or think == asked:
        return []
    return [f"reward.format.reward.think: is {think}, but prompt.think is {asked}"]


def reward_cannot_be_named(cfg: Config) -> list[str]:
    """Names of rewards become names of metrics, so they must be valid and unused."""
    rewards = value(cfg, "reward")
    return reward_name_problems(map(str, rewards)) if isinstance(rewards, Mapping) else []


def reward_cannot_be_called(cfg: Config) -> list[str]:
    """A reward's signature may name only existing fields. This rule imports the rewards."""
    problems = []
    for name, entry in (value(cfg, "reward") or {}).items():
        node = value(entry, "reward") if isinstance(entry, Mapping) else None
        if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
            problems += _reward_problems(f"reward.{name}.reward", str(name), node)
    return problems


def _reward_problems(path: str, name: str, node: Mapping[str, Any]) -> list[str]:
    try:
        target = locate(node["_target_"])
    except Exception:  # importing runs third-party code; reported by the check of targets
        return []
    if inspect.isclass(target):
        return [] if node.get("_partial_") else _problems_of_class(path, name, target)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return []
    if node.get("_partial_"):
        settings = {key: item for key, item in node.items() if key in parameters}
        return _uncallable(path, name, functools.partial(target, **settings))
    from tvg.reward.base import FIELDS  # imports torch

    if parameters.keys() & FIELDS:
        return [f"{path}: {node['_target_']} is a function: add _partial_: true to its node"]
    return []


def _problems_of_class(path: str, name: str, target: type) -> list[str]:
    calls = [vars(base)["__call__"] for base in target.__mro__ if "__call__" in vars(base)]
    if not calls:
        return [f"{path}: reward {name!r} must be callable: {target.__name__} has no __call__"]
    return _uncallable(path, name, functools.partial(calls[0], None))  # binds self


def _uncallable(path: str, name: str, reward: Any) -> list[str]:
    from tvg.reward.signature import wanted_fields  # imports torch

    try:
        wanted_fields(name, reward)
    except ValueError as error:
        return [f"{path}: {error}"]
    return []


RULES: tuple[Rule, ...] = (
    group_of_one,
    micro_batch_over_batch,
    kl_without_reference,
    nothing_to_imitate,
    sampler_is_not_policy,
    schedule_longer_than_run,
    no_reward,
    reward_without_weight,
    reward_cannot_be_named,
    format_reward_out_of_reach,
    no_model,
    nothing_to_train,
    frozen_part_to_be_trained,
    dropout_beside_a_sampler,
    features_of_a_trained_trunk,
    rate_of_a_frozen_part,
)
