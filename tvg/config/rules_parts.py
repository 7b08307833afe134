"""Rules for which weights are trained; see `tvg.config.rules`."""

from __future__ import annotations

from collections.abc import Mapping

from tvg.config.values import Config, number, value

PARTS = ("vision", "merger", "language")


def is_adapted(cfg: Config) -> bool:
    """True if adapters are trained instead of the model's own weights."""
    return bool(value(cfg, "model.adapter.components"))


def trained_parts(cfg: Config) -> set[str]:
    """Parts of the model that are trained, by their own weights or by adapters."""
    if is_adapted(cfg):
        found: list[str] = []
        for key in ("components", "full_components"):
            chosen = value(cfg, f"model.adapter.{key}")
            found += chosen if isinstance(chosen, list) else []
        return set(found)
    return {part for part in PARTS if value(cfg, f"model.freeze_{part}") is not True}


def no_model(cfg: Config) -> list[str]:
    """A model needs a folder to read from, unless the command and the option can create one."""
    model = value(cfg, "model")
    if not isinstance(model, Mapping) or "path" not in model or "create" not in model:
        return []
    if model["path"] is not None or model["create"] is not None:
        return []
    return ["model.path: a value is needed (model.path=FOLDER of a checkpoint)"]


def nothing_to_train(cfg: Config) -> list[str]:
    """If every part is frozen, the optimizer has no parameters."""
    if value(cfg, "objective") and all(value(cfg, f"model.freeze_{p}") is True for p in PARTS):
        return ["model: freeze_vision, freeze_merger and freeze_language leave nothing to train"]
    return []


def frozen_part_to_be_trained(cfg: Config) -> list[str]:
    """Parts frozen by model.freeze_* cannot be trained through model.adapter."""
    if not is_adapted(cfg):
        return []
    return [
        f"model.adapter: parts and full_components name {part}, but model.freeze_{part} is true"
        for part in PARTS
        if part in trained_parts(cfg) and value(cfg, f"model.freeze_{part}") is True
    ]


def dropout_beside_a_sampler(cfg: Config) -> list[str]:
    """Dropout must be 0: the sampler draws without it, but the trainer would score with it."""
    dropout = number(cfg, "model.adapter.dropout")
    if not dropout or number(cfg, "objective.group_size") is None:
        return []
    return [
        f"model.adapter.dropout: must be 0 with objective.group_size, got {dropout:g}: the sampler "
        "draws without it, so that the trainer would score another distribution"
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
        f"data.cache: features are of a frozen vision trunk, but {why}: take data/cache=frames, "
        "or freeze it"
    ]


def rate_of_a_frozen_part(cfg: Config) -> list[str]:
    """A learning rate for a part that is not trained is a mistake."""
    rates = value(cfg, "objective.component_lr")
    if not isinstance(rates, Mapping) or value(cfg, "model") is None:
        return []
    full = value(cfg, "model.adapter.full_components") if is_adapted(cfg) else trained_parts(cfg)
    learning = {*(full or ()), *(["adapter"] if is_adapted(cfg) else [])}
    return [
        f"objective.component_lr.{part}: {rate} is the learning rate of a part that is not trained "
        "(see model.freeze_* and model.adapter)"
        for part, rate in rates.items()
        if rate is not None and part in {*PARTS, "adapter"} - learning
    ]
