"""Tests of config rules about trained parts: each refuses a bad config and accepts a valid one."""

from __future__ import annotations

from typing import Any

import pytest

from tvg.config.rules import RULES

ADAM = "torch.optim.AdamW"
SCORED = {"reward": {"iou": {"weight": 1.0}}}
GRPO = {"objective": {"group_size": 8}, **SCORED}
SFT = {"objective": {"optimizer": {"_target_": ADAM}}}
FEATURES = {"data": {"cache": {"_target_": "tvg.data.cache.features.FeatureCache"}}}


def problems(config: dict[str, Any]) -> list[str]:
    return [problem for rule in RULES for problem in rule(config)]


def lora(*parts: str, full: tuple[str, ...] = (), dropout: float = 0.0, **model: Any):
    adapter = {"components": list(parts), "full_components": list(full), "dropout": dropout}
    return {"model": {**model, "adapter": adapter}}


def rates(**component_lr: float | None) -> dict[str, Any]:
    return {"objective": {"component_lr": component_lr}}


# name -> (bad config, beginning of the message, similar valid config)
CASES = {
    "adapters on a frozen part": (
        {**lora("language", freeze_language=True), **SFT},
        "model.adapter.components: language is to be trained, but model.freeze_language is true",
        {**lora("language", freeze_vision=True, freeze_merger=True), **SFT},
    ),
    "a frozen part in full": (
        {**lora("language", full=("merger",), freeze_merger=True), **SFT},
        "model.adapter.full_components: merger is to be trained, but model.freeze_merger is true",
        {**lora("language", full=("merger",), freeze_merger=False), **SFT},
    ),
    "dropout beside a sampler": (
        {**lora("language", dropout=0.1), **GRPO},
        "model.adapter.dropout: must be 0 with objective.group_size, got 0.1",
        {**lora("language", dropout=0.1), **SFT},
    ),
    "half precision without adapters": (
        {"model": {"dtype": "bfloat16"}, **SFT},
        "model.dtype: training bfloat16 weights loses small updates",
        {**lora("language", dtype="bfloat16"), **SFT},
    ),
    "features of an adapted trunk": (
        {**FEATURES, **GRPO, **lora("vision", "language", freeze_vision=False)},
        "data.cache: cached features need a frozen vision encoder, but model.adapter trains vision",
        {**FEATURES, **GRPO, **lora("language", freeze_vision=False)},
    ),
    "a rate for a frozen part": (
        {"model": {"freeze_vision": True}, **rates(vision=1e-6)},
        "objective.component_lr.vision: 1e-06 is the learning rate of a part that is not trained",
        {"model": {"freeze_vision": False}, **rates(vision=1e-6)},
    ),
    "a rate for the weights under adapters": (
        {**lora("language"), **rates(language=1e-6)},
        "objective.component_lr.language: 1e-06 is",
        {**lora("language"), **rates(language=None, adapter=1e-4)},
    ),
    "a rate for no adapters": (
        {"model": {}, **rates(adapter=1e-4)},
        "objective.component_lr.adapter: 0.0001 is",
        {**lora("language", full=("merger",)), **rates(adapter=1e-4, merger=1e-6)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rule_refuses_bad_config_only(case):
    bad, message, good = CASES[case]
    found = problems(bad)
    assert len(found) == 1
    assert found[0].startswith(message)
    assert problems(good) == []
