"""Rules against combinations of settings that cannot work.

Each rule is a small function that takes a plain config and returns problems. A rule ignores missing
keys, so that it applies to every command. Checks that a component can make on its own arguments
belong in its constructor.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvg.config import rules_machine as machine
from tvg.config import rules_parts as parts
from tvg.config import rules_reward as reward
from tvg.config import rules_trainer as trainer
from tvg.config.values import Config, Rule, number, value


def samples_groups(cfg: Config) -> bool:
    """True if the objective learns from its own samples (GRPO and related objectives)."""
    return number(cfg, "objective.group_size") is not None


def group_of_one(cfg: Config) -> list[str]:
    """A group needs several completions, because advantages compare them."""
    size = number(cfg, "objective.group_size")
    if size is None or size >= 2:
        return []
    return [f"objective.group_size: a group needs at least 2 completions, got {size}"]


def micro_batch_over_batch(cfg: Config) -> list[str]:
    """A micro-batch cannot exceed the batch: both count prompts per GPU and optimizer step."""
    micro, batch = number(cfg, "objective.micro_batch_size"), number(cfg, "data.batch_size")
    if micro is None or batch is None or micro <= batch:
        return []
    return [
        f"objective.micro_batch_size: {micro:g} prompts per pass, but data.batch_size is only "
        f"{batch:g} a step"
    ]


def kl_without_reference(cfg: Config) -> list[str]:
    """A KL weight above 0 needs the frozen reference."""
    weight = number(cfg, "objective.loss.kl_coef")
    if not weight or value(cfg, "objective.reference", "initial") is not None:
        return []
    return [
        f"objective.loss.kl_coef: {weight:g} needs a reference, but objective.reference is null"
    ]


def nothing_to_imitate(cfg: Config) -> list[str]:
    """Supervised training needs an answer format, which multiple-choice prompts do not have."""
    if samples_groups(cfg) or value(cfg, "objective") is None:
        return []
    prompt = value(cfg, "prompt")
    if not isinstance(prompt, Mapping) or prompt.get("answer_format", "") is not None:
        return []
    return ["prompt.answer_format: supervised training needs one, but this prompt has null"]


def sampler_is_not_policy(cfg: Config) -> list[str]:
    """Log-probabilities use the whole softmax, so the sampler must not truncate it."""
    if not samples_groups(cfg):
        return []
    problems = []
    why = "the sampler would draw from another distribution than the trainer scores"
    top_p, top_k = number(cfg, "rollout.top_p"), number(cfg, "rollout.top_k")
    temperature = number(cfg, "rollout.temperature")
    may_cut = value(cfg, "policy.sampler_may_cut") is True  # set by compat=time_r1
    if top_p is not None and top_p < 1 and not may_cut:
        problems.append(f"rollout.top_p: must be 1.0 with objective.group_size, got {top_p}: {why}")
    if top_k is not None and top_k > 0 and not may_cut:
        problems.append(f"rollout.top_k: must be 0 with objective.group_size, got {top_k}: {why}")
    if temperature is not None and temperature <= 0:
        problems.append(
            "rollout.temperature: greedy completions of a group are all the same: nothing to learn"
        )
    return problems


def no_reward(cfg: Config) -> list[str]:
    """Learning from samples needs a reward with a weight other than 0."""
    if not samples_groups(cfg):
        return []
    rewards = value(cfg, "reward") or {}
    weights = {name: number(rewards, f"{name}.weight") for name in rewards}
    if any(weight != 0 for weight in weights.values()):
        return []
    found = "every weight is 0" if weights else "none is chosen (reward=[format,iou])"
    return [f"reward: learning from samples needs a reward, but {found}"]


def reward_without_weight(cfg: Config) -> list[str]:
    """Every reward needs a weight."""
    rewards = value(cfg, "reward")
    if not isinstance(rewards, Mapping):
        return []
    return [
        f"reward.{name}.weight: expected a number (0: logged alone), got {entry.get('weight')!r}"
        for name, entry in rewards.items()
        if isinstance(entry, Mapping) and number(entry, "weight") is None
    ]


def format_reward_out_of_reach(cfg: Config) -> list[str]:
    """The format reward must expect thinking if, and only if, the prompt asks for it."""
    think, asked = value(cfg, "reward.format.reward.think"), value(cfg, "prompt.think")
    if not isinstance(think, bool) or not isinstance(asked, bool) or think == asked:
        return []
    return [f"reward.format.reward.think: is {think}, but prompt.think is {asked}"]


def frame_budget(cfg: Config) -> list[str]:
    """Lower bounds of the frame sampling must not exceed their upper bounds."""
    problems = []
    sampling = "data.clip.sampling"
    for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
        least, most = number(cfg, f"{sampling}.{low}"), number(cfg, f"{sampling}.{high}")
        if least is not None and most is not None and least > most:
            problems.append(f"{sampling}.{low}: {least:g} is more than {high}={most:g}")
    return problems


def on_missing_unknown(cfg: Config) -> list[str]:
    """`on_missing` must be `error` or `skip`."""
    found = value(cfg, "data.on_missing", "error")
    if found in ("error", "skip"):
        return []
    return [f"data.on_missing: expected error or skip, got {found!r}"]


def preparation_without_end(cfg: Config) -> list[str]:
    """The number of workers and their time limit must be valid numbers, or null."""
    problems = []
    num_workers = value(cfg, "prepare.num_workers")
    if num_workers is not None and not (type(num_workers) is int and num_workers >= 0):
        problems.append(
            "prepare.num_workers: expected a number of processes (0: none, null: one a processor), "
            f"got {num_workers!r}"
        )
    timeout_s, limit_s = value(cfg, "prepare.timeout_s"), number(cfg, "prepare.timeout_s")
    if timeout_s is not None and not (limit_s is not None and limit_s > 0):
        problems.append(
            f"prepare.timeout_s: expected seconds above 0 (null: no limit), got {timeout_s!r}"
        )
    return problems


RULES: tuple[Rule, ...] = (
    group_of_one,
    micro_batch_over_batch,
    machine.updates_lost_in_half_precision,
    kl_without_reference,
    nothing_to_imitate,
    sampler_is_not_policy,
    no_reward,
    reward_without_weight,
    reward.reward_cannot_be_named,
    format_reward_out_of_reach,
    parts.no_model,
    parts.nothing_to_train,
    parts.frozen_part_to_be_trained,
    parts.dropout_beside_a_sampler,
    parts.features_of_a_trained_trunk,
    parts.rate_of_a_frozen_part,
    machine.flash_attention_not_possible,
    machine.offload_without_its_optimizer,
    machine.eight_bit_optimizer_not_possible,
    machine.parameters_offloaded,
    machine.strategy_without_gpu,
    machine.cpu_devices,
    machine.float16_training,
    trainer.trainer_steps_in_our_place,
    trainer.run_without_end,
    trainer.unknown_choice,
    trainer.count_out_of_range,
    trainer.validation_interval,
    trainer.schedule_longer_than_run,
    trainer.unsupported_strategy,
    frame_budget,
    on_missing_unknown,
    preparation_without_end,
)

# These rules import what the config names, so they run only after all others have passed.
IMPORTING_RULES: tuple[Rule, ...] = (reward.reward_cannot_be_called,)
