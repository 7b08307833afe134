"""Checks of settings, used first by the config check and again by the components.

The config check runs before torch is imported, so that mistakes are reported early. The components
are built after the weights are loaded, or later. Each check returns one line per problem.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec

# Parts of a model: the vision encoder, its projection to the language model, everything else.
PARTS = ("vision", "merger", "language")
ADAPTER = "adapter"  # the LoRA weights of all parts
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")
HEAD_PRODUCTS = ("auto", "half", "full")


def refuse(problems: Iterable[str]) -> None:
    """Raises the problems as one ValueError; does nothing if there are none."""
    if lines := list(problems):
        raise ValueError("; ".join(lines))


def group_size_problems(group_size: float) -> list[str]:
    """Checks that a group has at least 2 completions, because advantages compare them."""
    if group_size >= 2:
        return []
    return [f"objective.group_size: a group needs at least 2 completions, got {group_size:g}"]


def reference_problems(kl_coef: float, reference: str | None) -> list[str]:
    """Checks that there is a frozen reference if the KL weight is not 0."""
    if not kl_coef or reference is not None:
        return []
    return [
        f"objective.loss.kl_coef: {kl_coef:g} needs a reference, but objective.reference is null"
    ]


def schedule_problems(
    name: str | None, warmup_steps: float | None, num_steps: float | None
) -> list[str]:
    """Checks that the schedule exists and that its warm-up ends within the run.

    Arguments that are not known yet are None and are not checked.
    """
    if name is not None and name not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        return [f"objective.schedule.name: expected one of {known}, got {name!r}"]
    key = "objective.schedule.warmup_steps"
    if warmup_steps is None:
        return []
    if num_steps is not None and not 0 <= warmup_steps <= num_steps:
        return [
            f"{key}: expected 0 to {num_steps:g} (the steps of the run, see trainer.max_steps and "
            f"trainer.max_epochs), got {warmup_steps:g}"
        ]
    if warmup_steps < 0:
        return [f"{key}: expected at least 0, got {warmup_steps:g}"]
    if warmup_steps and name == "constant":
        return [
            f"{key}: got {warmup_steps:g}, but 'constant' has no warm-up; "
            "use objective.schedule.name=constant_with_warmup"
        ]
    return []


def frozen_model_problems(frozen: Collection[str]) -> list[str]:
    """Checks that at least one part is trained; otherwise the optimizer has no parameters."""
    if set(frozen) != set(PARTS):
        return []
    keys = ", ".join(f"model.freeze_{part}" for part in PARTS)
    return [f"{keys} are all true: nothing is left to train"]


def frozen_adapter_problems(
    chosen: Mapping[str, Collection[str]], frozen: Collection[str]
) -> list[str]:
    """Checks that `model.adapter` trains no frozen part.

    Args:
        chosen: the parts that each key of `model.adapter` names.
        frozen: the frozen parts.
    """
    return [
        f"model.adapter.{key}: {part} is to be trained, but model.freeze_{part} is true"
        for key, parts in chosen.items()
        for part in parts
        if part in frozen
    ]


def untrained_rate_problems(
    component_lr: Mapping[str, float | None], trained: Collection[str]
) -> list[str]:
    """Checks that no part has a learning rate without being trained."""
    return [
        f"objective.component_lr.{part}: {rate} is the learning rate of a part that is not "
        "trained (see model.freeze_* and model.adapter)"
        for part, rate in component_lr.items()
        if rate is not None and part in {*PARTS, ADAPTER} - set(trained)
    ]


def eight_bit_problems() -> list[str]:
    """Checks that bitsandbytes, an optional dependency of 8-bit optimizers, is installed."""
    if find_spec("bitsandbytes") is not None:
        return []
    return [
        "objective.optimizer: 8-bit AdamW needs bitsandbytes: pip install 'tvg[bnb]', or "
        "objective/optimizer=adamw"
    ]


def torchao_problems() -> list[str]:
    """Checks that torchao, an optional dependency of stochastic rounding, is installed."""
    if find_spec("torchao") is not None:
        return []
    return [
        "objective.optimizer: 8-bit AdamW with stochastic rounding needs torchao: pip install "
        "'tvg[torchao]', or objective/optimizer=adamw with model.dtype=float32"
    ]


def model_path_problems(*, has_path: bool, can_create: bool) -> list[str]:
    """Checks that a model has a folder to read from, unless the model can be created."""
    if has_path or can_create:
        return []
    return ["model.path: a value is needed (model.path=FOLDER of a checkpoint)"]


def head_products_problems(kind: object) -> list[str]:
    """Checks the arithmetic of the products with the language-model head."""
    if kind in HEAD_PRODUCTS:
        return []
    return [f"policy.head_products: expected one of {', '.join(HEAD_PRODUCTS)}, got {kind!r}"]


def on_missing_problems(on_missing: object) -> list[str]:
    """Checks that missing videos either cause an error or are skipped."""
    if on_missing in ("error", "skip"):
        return []
    return [f"data.on_missing: expected error or skip, got {on_missing!r}"]
