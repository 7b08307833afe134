"""Rules for what a machine, a strategy or a precision cannot do; see `tvg.config.rules`."""

from __future__ import annotations

from importlib.util import find_spec

from tvg.config.rules_parts import is_adapted
from tvg.config.values import Config, value


def updates_lost_in_half_precision(cfg: Config) -> list[str]:
    """Half precision loses updates: bfloat16 cannot represent a step of 1e-6 on a weight of 1e-2.

    DeepSpeed keeps its own float32 master weights, and adapters are always float32.
    """
    dtype = value(cfg, "model.dtype")
    strategy = str(value(cfg, "strategy._target_", ""))
    if value(cfg, "objective.optimizer") is None or dtype in (None, "float32"):
        return []
    if strategy.endswith("DeepSpeedStrategy") or is_adapted(cfg):
        return []
    return [
        f"model.dtype: training {dtype} weights loses small updates: take model.dtype=float32 with "
        "trainer.precision=bf16-mixed, or a deepspeed strategy, which keeps float32 masters"
    ]


def flash_attention_not_possible(cfg: Config) -> list[str]:
    """flash-attn is an optional extra that runs only on GPUs and in half precision."""
    if value(cfg, "model.attn_implementation") != "flash_attention_2":
        return []
    where, problems = "model.attn_implementation: flash_attention_2", []
    if find_spec("flash_attn") is None:
        problems.append(
            f"{where} is not installed: pip install 'tvg[flash-attn]' (needs nvcc), "
            "or model.attn_implementation=sdpa"
        )
    if value(cfg, "model.dtype") == "float32":
        problems.append(f"{where} cannot compute in model.dtype=float32: use bfloat16")
    if value(cfg, "trainer.accelerator") == "cpu":
        problems.append(f"{where} cannot run on trainer.accelerator=cpu: use sdpa")
    return problems


def is_deepspeed(cfg: Config) -> bool:
    """True if the strategy is one of DeepSpeed's."""
    return "deepspeed" in str(value(cfg, "strategy._target_", "")).lower()


def offload_without_its_optimizer(cfg: Config) -> list[str]:
    """Optimizer states in CPU memory need DeepSpeed's CPU optimizer, and only they do."""
    target = str(value(cfg, "objective.optimizer._target_", ""))
    has_own, wanted = target.endswith("DeepSpeedCPUAdam"), "deepspeed.ops.adam.DeepSpeedCPUAdam"
    offloads = is_deepspeed(cfg) and bool(value(cfg, "strategy.offload_optimizer"))
    if offloads and target and not has_own:
        return [
            f"objective.optimizer._target_: strategy.offload_optimizer needs {wanted}, got {target}"
        ]
    if has_own and value(cfg, "strategy") is not None and not offloads:
        return [
            f"objective.optimizer._target_: {wanted} steps states in CPU memory: "
            "it needs a DeepSpeed strategy with strategy.offload_optimizer=true"
        ]
    return []


def eight_bit_optimizer_not_possible(cfg: Config) -> list[str]:
    """8-bit optimizer states need bitsandbytes, an optional extra."""
    target = str(value(cfg, "objective.optimizer._target_", ""))
    if not target.endswith("adamw_8bit"):
        return []
    if find_spec("bitsandbytes") is not None:
        return []
    return [
        "objective.optimizer: 8-bit AdamW needs bitsandbytes: pip install 'tvg[bnb]', or "
        "objective/optimizer=adamw"
    ]


def parameters_offloaded(cfg: Config) -> list[str]:
    """Offloading parameters needs ZeRO-3, which is not supported."""
    if not is_deepspeed(cfg) or not value(cfg, "strategy.offload_parameters"):
        return []
    return ["strategy.offload_parameters: needs ZeRO-3, which is not supported"]


def strategy_without_gpu(cfg: Config) -> list[str]:
    """DeepSpeed's Lightning strategy refuses CPUs."""
    if not is_deepspeed(cfg) or value(cfg, "trainer.accelerator") != "cpu":
        return []
    return ["strategy: DeepSpeed runs on GPUs, but trainer.accelerator is cpu: use strategy=ddp"]


def cpu_devices(cfg: Config) -> list[str]:
    """On CPUs a device is a process, so `devices` must be a number."""
    devices = value(cfg, "trainer.devices")
    if value(cfg, "trainer.accelerator") != "cpu" or devices == "auto" or devices is None:
        return []
    if isinstance(devices, int) and not isinstance(devices, bool) and devices > 0:
        return []
    return [f"trainer.devices: on CPU expected a number of processes, got {devices!r}"]


def float16_training(cfg: Config) -> list[str]:
    """Float16 needs scaled gradients, which our clipping would see before they are unscaled.

    DeepSpeed scales and clips gradients itself.
    """
    precision = str(value(cfg, "trainer.precision", ""))
    if not precision.startswith("16") or is_deepspeed(cfg):
        return []
    return [f"trainer.precision: {precision} is not supported: use bf16-mixed or 32-true"]
