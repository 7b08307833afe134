"""Rules for settings of trainer and schedule that would otherwise be refused late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvg.config.values import Config, number, value

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")
HALF_PRECISIONS = ("16-mixed", "16-true")  # another rule allows them only with DeepSpeed
PRECISION_ALIASES = ("32", "64", "16", "bf16")  # Lightning's short names
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")
STRATEGY_NAMES = ("auto", "ddp")
DEEPSPEED_STAGES = (1, 2)


def trainer_steps_in_our_place(cfg: Config) -> list[str]:
    """The modules clip and accumulate gradients themselves, so Lightning must not do so."""
    problems = []
    clip = value(cfg, "trainer.gradient_clip_val")
    if clip is not None:
        problems.append(
            f"trainer.gradient_clip_val: must be null, got {clip}: use objective.max_grad_norm"
        )
    accumulate = value(cfg, "trainer.accumulate_grad_batches", 1)
    if accumulate not in (1, None):
        problems.append(
            f"trainer.accumulate_grad_batches: must be 1, got {accumulate}: data.batch_size is the "
            "batch of a whole step, objective.micro_batch_size what goes through at once"
        )
    return problems


def run_without_end(cfg: Config) -> list[str]:
    """A run needs a limit; without one, Lightning would stop after 1,000 epochs."""
    if not isinstance(value(cfg, "trainer"), Mapping):
        return []
    limits = (value(cfg, "trainer.max_steps"), value(cfg, "trainer.max_epochs"))
    if any(limit not in (None, -1) for limit in limits) or value(cfg, "trainer.max_time"):
        return []
    return ["trainer.max_steps: set it or trainer.max_epochs: nothing would end the run"]


def unknown_choice(cfg: Config) -> list[str]:
    """Accelerator, precision and schedule must be known ones."""
    problems = []
    for key, known, aliases in (
        ("trainer.accelerator", ACCELERATORS, ()),
        ("trainer.precision", PRECISIONS, (*PRECISION_ALIASES, *HALF_PRECISIONS)),
        ("objective.schedule.name", SCHEDULES, ()),
    ):
        found = value(cfg, key)
        if found is not None and str(found) not in (*known, *aliases):
            problems.append(f"{key}: expected one of {', '.join(known)}, got {found!r}")
    return problems


def count_out_of_range(cfg: Config) -> list[str]:
    """Counts of the trainer must be in range."""
    problems = []
    for key, least, also in (
        ("max_steps", 1, (None, -1)),
        ("max_epochs", 1, (None, -1)),
        ("num_nodes", 1, ()),
        ("log_every_n_steps", 0, (None,)),
        ("num_sanity_val_steps", 0, (None, -1)),
    ):
        found = value(cfg, f"trainer.{key}", least)
        if found not in also and not (_is_count(found) and found >= least):
            problems.append(
                f"trainer.{key}: expected a whole number of at least {least}"
                f"{_or(also)}, got {found!r}"
            )
    return problems


def _or(values: tuple[Any, ...]) -> str:
    words = ["null" if item is None else str(item) for item in values]
    return f" (or {' or '.join(words)})" if words else ""


def _is_count(found: Any) -> bool:
    return isinstance(found, int) and not isinstance(found, bool)


def validation_interval(cfg: Config) -> list[str]:
    """The validation interval is either batches across epochs, or a share of each epoch."""
    interval = value(cfg, "trainer.val_check_interval")
    every = value(cfg, "trainer.check_val_every_n_epoch")
    problems = []
    if every is not None and not (_is_count(every) and every >= 1):
        problems.append(
            f"trainer.check_val_every_n_epoch: expected a number of epochs or null, got {every!r}"
        )
    elif every is not None and _is_count(interval):
        problems.append(
            f"trainer.check_val_every_n_epoch: {every} needs trainer.val_check_interval=1.0 (or a "
            f"share of an epoch), got {interval} batches, which may be more than an epoch has; "
            "null counts the batches over epochs"
        )
    if interval is None:
        return problems
    if _is_count(interval):
        if interval < 1:
            problems.append(f"trainer.val_check_interval: expected at least 1, got {interval}")
    elif not isinstance(interval, float) or not 0 < interval <= 1:
        problems.append(
            "trainer.val_check_interval: expected a number of batches, or a share of an epoch from "
            f"0.0 to 1.0, got {interval!r}"
        )
    elif every is None:
        problems.append(
            f"trainer.val_check_interval: {interval} is a share of an epoch, which needs "
            "trainer.check_val_every_n_epoch=1"
        )
    return problems


def schedule_longer_than_run(cfg: Config) -> list[str]:
    """A warm-up must end within the run."""
    warmup, steps = number(cfg, "objective.schedule.warmup_steps"), number(cfg, "trainer.max_steps")
    if warmup is None:
        return []
    key = "objective.schedule.warmup_steps"
    if warmup < 0 or (steps is not None and 0 < steps < warmup):
        limit = (
            f" to {steps:g} (trainer.max_steps)" if steps is not None and steps > 0 else " steps"
        )
        return [f"{key}: expected 0{limit}, got {warmup:g}"]
    if warmup and value(cfg, "objective.schedule.name") == "constant":
        return [
            f"{key}: got {warmup:g}, but 'constant' has no warm-up; "
            "use objective.schedule.name=constant_with_warmup"
        ]
    return []


def unsupported_strategy(cfg: Config) -> list[str]:
    """Refuses strategies whose gradients, clipping or exports the modules do not support.

    With ZeRO-3 or FSDP, a run would train on its last micro-batch only and export empty weights.
    """
    target = value(cfg, "strategy._target_")
    if not isinstance(target, str):
        return []
    known = "strategy=auto, ddp, deepspeed_zero1, deepspeed_zero2 and deepspeed_zero2_offload"
    name = target.rpartition(".")[2]
    if name == "DeepSpeedStrategy":
        stage = value(cfg, "strategy.stage", 2)
        if stage in DEEPSPEED_STAGES:
            return []
        return [f"strategy.stage: ZeRO-{stage} is not supported, only stages 1 and 2 are"]
    if target == "builtins.str":
        chosen = value(cfg, "strategy.object")
        if chosen in STRATEGY_NAMES:
            return []
        return [f"strategy.object: {chosen} is not supported; there are {known}"]
    if name != "DDPStrategy":
        return [f"strategy: {name} is not supported; there are {known}"]
    return []
