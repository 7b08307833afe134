"""Rules for trainer, strategy, precision, machine and data preparation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvg.config.rules.learning import is_adapted
from tvg.config.values import Config, Rule, number, value
from tvg.core.limits import (
    eight_bit_problems,
    head_products_problems,
    on_missing_problems,
    torchao_problems,
)

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")
HALF_PRECISIONS = ("16-mixed", "16-true")  # another rule allows them only with DeepSpeed
PRECISION_ALIASES = ("32", "64", "16", "bf16")  # Lightning's short names
DEEPSPEED_STAGES = (1, 2, 3)

# -- precision and strategy ------------------------------------------------------------------------


def is_deepspeed(cfg: Config) -> bool:
    """Returns whether the strategy is one of DeepSpeed's."""
    return "deepspeed" in str(value(cfg, "strategy._target_", "")).lower()


def updates_lost_in_half_precision(cfg: Config) -> list[str]:
    """Trained weights must be float32: bfloat16 cannot add 1e-6 to a weight of 1e-2.

    DeepSpeed keeps float32 master weights, adapters are always float32, and stochastic rounding
    keeps small updates of bfloat16 weights in expectation.
    """
    dtype = value(cfg, "model.dtype")
    strategy = str(value(cfg, "strategy._target_", ""))
    if value(cfg, "objective.optimizer") is None or dtype in (None, "float32"):
        return []
    if strategy.endswith("DeepSpeedStrategy") or is_adapted(cfg):
        return []
    if dtype == "bfloat16" and rounds_stochastically(cfg):
        return []
    return [
        f"model.dtype: training {dtype} weights loses small updates: use model.dtype=float32 with "
        "trainer.precision=bf16-mixed, a DeepSpeed strategy, which keeps float32 master weights, "
        "or bfloat16 with objective/optimizer=adamw_8bit_stochastic"
    ]


def rounds_stochastically(cfg: Config) -> bool:
    """Returns whether the optimizer rounds bfloat16 weights stochastically."""
    target = str(value(cfg, "objective.optimizer._target_", ""))
    if target.startswith("torchao.optim."):
        return value(cfg, "objective.optimizer.bf16_stochastic_round") is True
    return target.endswith(".StochasticAdamW8bit")


def reference_in_another_precision(cfg: Config) -> list[str]:
    """The reference's precision must be bfloat16, in which autocast computes."""
    dtype, key = value(cfg, "objective.reference_dtype"), "objective.reference_dtype"
    if dtype is None:
        return []
    if dtype != "bfloat16":
        return [f"{key}: expected bfloat16 or null, got {dtype!r}"]
    if str(value(cfg, "strategy._target_", "")).endswith(".FSDP2Strategy"):
        return [f"{key}: must be null with strategy=fsdp2, which shards the reference"]
    precision = str(value(cfg, "trainer.precision", ""))
    if precision in ("bf16-mixed", "bf16") or value(cfg, "model.dtype") == "bfloat16":
        return []
    return [
        f"{key}: bfloat16 needs trainer.precision=bf16-mixed, which computes in bfloat16, got "
        f"{precision}"
    ]


def head_products_unknown(cfg: Config) -> list[str]:
    """See `head_products_problems`."""
    return head_products_problems(value(cfg, "policy.head_products", "auto"))


def float16_training(cfg: Config) -> list[str]:
    """Float16 needs DeepSpeed, which scales and clips gradients itself.

    Without DeepSpeed, gradients would be clipped before they are unscaled.
    """
    precision = str(value(cfg, "trainer.precision", ""))
    if not precision.startswith("16") or is_deepspeed(cfg):
        return []
    return [f"trainer.precision: {precision} is not supported: use bf16-mixed or 32-true"]


def flash_attention_without_gpu(cfg: Config) -> list[str]:
    """flash-attn runs only on GPUs."""
    if value(cfg, "model.attn_implementation") != "flash_attention_2":
        return []
    if value(cfg, "trainer.accelerator") != "cpu":
        return []
    return [
        "model.attn_implementation: flash_attention_2 cannot run on trainer.accelerator=cpu: "
        "use sdpa"
    ]


def eight_bit_optimizer_not_possible(cfg: Config) -> list[str]:
    """See `eight_bit_problems` and `torchao_problems`."""
    target = str(value(cfg, "objective.optimizer._target_", ""))
    if target.endswith("adamw_8bit"):
        return eight_bit_problems()
    return torchao_problems() if rounds_stochastically(cfg) else []


def offload_without_its_optimizer(cfg: Config) -> list[str]:
    """Optimizer states in CPU memory and DeepSpeed's CPU optimizer need each other."""
    target = str(value(cfg, "objective.optimizer._target_", ""))
    has_own, wanted = target.endswith("DeepSpeedCPUAdam"), "deepspeed.ops.adam.DeepSpeedCPUAdam"
    offloads = is_deepspeed(cfg) and bool(value(cfg, "strategy.offload_optimizer"))
    if offloads and target and not has_own:
        return [
            f"objective.optimizer._target_: strategy.offload_optimizer needs {wanted}, got {target}"
        ]
    if has_own and value(cfg, "strategy") is not None and not offloads:
        return [
            f"objective.optimizer._target_: {wanted} updates states in CPU memory: "
            "it needs a DeepSpeed strategy with strategy.offload_optimizer=true"
        ]
    return []


def parameters_offloaded(cfg: Config) -> list[str]:
    """Only ZeRO-3 can offload parameters."""
    if not is_deepspeed(cfg) or not value(cfg, "strategy.offload_parameters"):
        return []
    stage = value(cfg, "strategy.stage", 2)
    if stage == 3:
        return []
    return [f"strategy.offload_parameters: needs strategy.stage=3 (ZeRO-3), got stage {stage}"]


def shards_weights(cfg: Config) -> bool:
    """Returns whether ranks share the weights: FSDP2 and ZeRO-3."""
    is_stage_3 = is_deepspeed(cfg) and value(cfg, "strategy.stage", 2) == 3
    return is_stage_3 or is_fsdp2(cfg)


def is_fsdp2(cfg: Config) -> bool:
    """Returns whether the strategy is FSDP2."""
    return str(value(cfg, "strategy._target_", "")).endswith(".FSDP2Strategy")


def reference_offloaded_in_shards(cfg: Config) -> list[str]:
    """A sharded reference cannot be moved to the CPU between uses."""
    if not shards_weights(cfg) or not value(cfg, "objective.reference_offload"):
        return []
    return [
        "objective.reference_offload: must be false with strategy=fsdp2 and ZeRO-3, which shard "
        "the reference across ranks; strategy=deepspeed_zero3_offload keeps it in CPU memory"
    ]


def eight_bit_optimizer_in_shards(cfg: Config) -> list[str]:
    """The optimizers of bitsandbytes do not support the sharded tensors of FSDP2."""
    target = str(value(cfg, "objective.optimizer._target_", ""))
    if not is_fsdp2(cfg) or not target.endswith("adamw_8bit"):
        return []
    return ["objective/optimizer=adamw_8bit: is not supported with strategy=fsdp2: use adamw"]


def strategy_without_gpu(cfg: Config) -> list[str]:
    """Lightning's DeepSpeed strategy does not run on CPUs."""
    if not is_deepspeed(cfg) or value(cfg, "trainer.accelerator") != "cpu":
        return []
    return ["strategy: DeepSpeed runs on GPUs, but trainer.accelerator is cpu: use strategy=ddp"]


def unsupported_strategy(cfg: Config) -> list[str]:
    """Refuses strategies that have no adapter in `tvg.training.strategy`."""
    target = value(cfg, "strategy._target_")
    if not isinstance(target, str):
        return []
    known = (
        "strategy=auto, ddp, fsdp2, deepspeed_zero1, deepspeed_zero2, deepspeed_zero2_offload, "
        "deepspeed_zero3 and deepspeed_zero3_offload"
    )
    name = target.rpartition(".")[2]
    if name == "DeepSpeedStrategy":
        stage = value(cfg, "strategy.stage", 2)
        if stage in DEEPSPEED_STAGES:
            return []
        return [f"strategy.stage: expected 1, 2 or 3, got {stage!r}"]
    if name not in ("automatic_strategy", "DDPStrategy", "FSDP2Strategy"):
        return [f"strategy: {name} is not supported; supported are {known}"]
    return []


def retry_while_others_wait(cfg: Config) -> list[str]:
    """Engines that communicate in every pass cannot repeat a pass of one rank."""
    name = str(value(cfg, "strategy._target_", "")).rpartition(".")[2]
    if value(cfg, "train.retry_on_oom") is not True or name in (
        "automatic_strategy",
        "DDPStrategy",
    ):
        return []
    return [
        f"train.retry_on_oom: must be false with {name}, whose ranks communicate in every pass: "
        "set objective.micro_batch_size smaller instead"
    ]


def cpu_devices(cfg: Config) -> list[str]:
    """On CPUs a device is a process, so `devices` must be a number."""
    devices = value(cfg, "trainer.devices")
    if value(cfg, "trainer.accelerator") != "cpu" or devices == "auto" or devices is None:
        return []
    if isinstance(devices, int) and not isinstance(devices, bool) and devices > 0:
        return []
    return [f"trainer.devices: on CPU expected a number of processes, got {devices!r}"]


# -- trainer ---------------------------------------------------------------------------------------


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
            "batch of a complete step, objective.micro_batch_size the prompts per pass"
        )
    return problems


def run_without_end(cfg: Config) -> list[str]:
    """A run needs a limit; without one, Lightning stops after 1,000 epochs."""
    if not isinstance(value(cfg, "trainer"), Mapping):
        return []
    limits = (value(cfg, "trainer.max_steps"), value(cfg, "trainer.max_epochs"))
    if any(limit not in (None, -1) for limit in limits) or value(cfg, "trainer.max_time"):
        return []
    return ["trainer.max_steps: set it or trainer.max_epochs; otherwise nothing limits the run"]


def unknown_choice(cfg: Config) -> list[str]:
    """Accelerator and precision must be supported values."""
    problems = []
    for key, known, aliases in (
        ("trainer.accelerator", ACCELERATORS, ()),
        ("trainer.precision", PRECISIONS, (*PRECISION_ALIASES, *HALF_PRECISIONS)),
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
            f"share of an epoch), got {interval} batches, which may be more than one epoch; "
            "null counts batches across epochs"
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


# -- data and preparation --------------------------------------------------------------------------


def on_missing_unknown(cfg: Config) -> list[str]:
    """See `on_missing_problems`."""
    return on_missing_problems(value(cfg, "data.on_missing", "error"))


def preparation_without_end(cfg: Config) -> list[str]:
    """The number of workers and their time limit must be valid numbers, or null."""
    problems = []
    num_workers = value(cfg, "prepare.num_workers")
    if num_workers is not None and not (type(num_workers) is int and num_workers >= 0):
        problems.append(
            "prepare.num_workers: expected a number of processes (0: none, null: all CPUs), "
            f"got {num_workers!r}"
        )
    timeout_s, limit_s = value(cfg, "prepare.timeout_s"), number(cfg, "prepare.timeout_s")
    if timeout_s is not None and not (limit_s is not None and limit_s > 0):
        problems.append(
            f"prepare.timeout_s: expected seconds above 0 (null: no limit), got {timeout_s!r}"
        )
    return problems


RULES: tuple[Rule, ...] = (
    updates_lost_in_half_precision,
    reference_in_another_precision,
    flash_attention_without_gpu,
    offload_without_its_optimizer,
    eight_bit_optimizer_not_possible,
    parameters_offloaded,
    reference_offloaded_in_shards,
    eight_bit_optimizer_in_shards,
    strategy_without_gpu,
    retry_while_others_wait,
    cpu_devices,
    float16_training,
    head_products_unknown,
    trainer_steps_in_our_place,
    run_without_end,
    unknown_choice,
    count_out_of_range,
    validation_interval,
    unsupported_strategy,
    on_missing_unknown,
    preparation_without_end,
)
