"""Tests of config rules.

Each rule refuses a bad config with a message that names the key, and accepts a similar valid
config.
"""

from __future__ import annotations

from typing import Any

import pytest

from tvg.config.rules import RULES

ADAM, CPU_ADAM = "torch.optim.AdamW", "deepspeed.ops.adam.DeepSpeedCPUAdam"
DEEPSPEED = "lightning.pytorch.strategies.DeepSpeedStrategy"
SCORED = {"reward": {"iou": {"weight": 1.0}}}
THINK = {"weight": 1.0, "reward": {"think": True}}
GRPO = {"objective": {"group_size": 8}, **SCORED}
CPU = {"accelerator": "cpu", "max_steps": 1}
FROZEN = {"freeze_vision": True, "freeze_merger": True, "freeze_language": True}


def problems(config: dict[str, Any]) -> list[str]:
    return [problem for rule in RULES for problem in rule(config)]


def optimizer(target: str, **strategy: Any) -> dict[str, Any]:
    return {
        "objective": {"optimizer": {"_target_": target}},
        "strategy": {"_target_": DEEPSPEED, "stage": 2, **strategy},
    }


# name -> (bad config, beginning of the message, similar valid config)
CASES = {
    "bfloat16 without masters": (
        {
            "model": {"dtype": "bfloat16"},
            "objective": {"optimizer": {"_target_": ADAM}},
        },
        "model.dtype: training bfloat16 weights loses small updates",
        {
            "model": {"dtype": "bfloat16"},
            "objective": {"optimizer": {"_target_": ADAM}},
            "strategy": {"_target_": DEEPSPEED, "stage": 2},
        },
    ),
    "group of one": (
        {"objective": {"group_size": 1}, **SCORED},
        "objective.group_size: a group needs at least 2 completions, got 1",
        {"objective": {"group_size": 2}, **SCORED},
    ),
    "micro-batch over batch": (
        {"objective": {"micro_batch_size": 3}, "data": {"batch_size": 2}},
        "objective.micro_batch_size: 3 prompts per pass, but data.batch_size is only 2",
        {"objective": {"micro_batch_size": 2}, "data": {"batch_size": 2}},
    ),
    "reward without a weight": (
        {"objective": {"group_size": 2}, "reward": {"iou": {"reward": {}}}},
        "reward.iou.weight: expected a number (0: only logged), got None",
        {"objective": {"group_size": 2}, **SCORED},
    ),
    "nothing to imitate": (
        {"objective": {"optimizer": {}}, "prompt": {"answer_format": None}},
        "prompt.answer_format: supervised training needs a format",
        {"objective": {"optimizer": {}}, "prompt": {"answer_format": "<answer>"}},
    ),
    "features of a trained trunk": (
        {
            "data": {"cache": {"_target_": "tvg.data.cache.features.FeatureCache"}},
            "model": {"freeze_vision": False},
            **GRPO,
        },
        "data.cache: cached features need a frozen vision encoder",
        {
            "data": {"cache": {"_target_": "tvg.data.cache.features.FeatureCache"}},
            "model": {"freeze_vision": True},
            **GRPO,
        },
    ),
    "KL without reference": (
        {"objective": {"loss": {"kl_coef": 0.04}, "reference": None}},
        "objective.loss.kl_coef: 0.04 needs a reference",
        {"objective": {"loss": {"kl_coef": 0.0}, "reference": None}},
    ),
    "nucleus sampling": (
        {**GRPO, "rollout": {"top_p": 0.9}},
        "rollout.top_p: must be 1.0 with objective.group_size, got 0.9",
        {**GRPO, "rollout": {"top_p": 1.0}},
    ),
    "top-k sampling": (
        {**GRPO, "rollout": {"top_k": 50}},
        "rollout.top_k: must be 0 with objective.group_size, got 50",
        {"objective": {}, "rollout": {"top_k": 50}},  # supervised training does not sample
    ),
    "greedy groups": (
        {**GRPO, "rollout": {"temperature": 0}},
        "rollout.temperature: must be above 0",
        {**GRPO, "rollout": {"temperature": 0.7}},
    ),
    "no reward": (
        {"objective": {"group_size": 8}},
        "reward: policy-gradient training needs a reward, but none is chosen",
        GRPO,
    ),
    "weights of zero": (
        {**GRPO, "reward": {"iou": {"weight": 0.0}}},
        "reward: policy-gradient training needs a reward, but every weight is 0",
        {**GRPO, "reward": {"iou": {"weight": 0.0}, "format": {"weight": 1}}},
    ),
    "format out of reach": (
        {"reward": {"format": THINK}, "prompt": {"think": False}},
        "reward.format.reward.think: is True, but prompt.think is False",
        {"reward": {"format": THINK}, "prompt": {"think": True}},
    ),
    "all frozen": (
        {"objective": {"x": 1}, "model": FROZEN},
        "model.freeze_vision, model.freeze_merger, model.freeze_language are all true",
        {"objective": {"x": 1}, "model": {**FROZEN, "freeze_merger": False}},
    ),
    "offload with torch's optimizer": (
        optimizer(ADAM, offload_optimizer=True),
        f"objective.optimizer._target_: strategy.offload_optimizer needs {CPU_ADAM}, got {ADAM}",
        optimizer(CPU_ADAM, offload_optimizer=True),
    ),
    "CPU optimizer without offload": (
        optimizer(CPU_ADAM),
        f"objective.optimizer._target_: {CPU_ADAM} updates states in CPU memory",
        optimizer(ADAM),
    ),
    "parameters offloaded": (
        {"strategy": {"_target_": DEEPSPEED, "stage": 2, "offload_parameters": True}},
        "strategy.offload_parameters: needs ZeRO-3, which is not supported",
        {"strategy": {"_target_": DEEPSPEED, "stage": 2, "offload_parameters": False}},
    ),
    "ZeRO-3": (
        {"strategy": {"_target_": DEEPSPEED, "stage": 3}},
        "strategy.stage: ZeRO-3 is not supported, only stages 1 and 2 are",
        {"strategy": {"_target_": DEEPSPEED, "stage": 1}},
    ),
    "FSDP": (
        {"strategy": {"_target_": "lightning.pytorch.strategies.FSDPStrategy"}},
        "strategy: FSDPStrategy is not supported; supported are strategy=auto, ddp, "
        "deepspeed_zero1",
        {"strategy": {"_target_": "lightning.pytorch.strategies.DDPStrategy"}},
    ),
    "ZeRO-3 by name": (
        {"strategy": {"_target_": "builtins.str", "object": "deepspeed_stage_3"}},
        "strategy: str is not supported; supported are strategy=auto, ddp",
        {"strategy": {"_target_": "tvg.build.automatic_strategy"}},
    ),
    "unknown precision": (
        {"trainer": {**CPU, "precision": 17}},
        "trainer.precision: expected one of 32-true, bf16-mixed, bf16-true, 64-true, got 17",
        {"trainer": {**CPU, "precision": 32}},
    ),
    "unknown accelerator": (
        {"trainer": {"accelerator": "cpus", "max_steps": 1}},
        "trainer.accelerator: expected one of auto, cpu, gpu, cuda, got 'cpus'",
        {"trainer": {"accelerator": "gpu", "max_steps": 1}},
    ),
    "unknown schedule": (
        {"objective": {"schedule": {"name": "cosin"}}},
        "objective.schedule.name: expected one of constant, constant_with_warmup, linear, cosine, "
        "got 'cosin'",
        {"objective": {"schedule": {"name": "cosine"}}},
    ),
    "warm-up longer than the run": (
        {"objective": {"schedule": {"warmup_steps": 5}}, "trainer": {"max_steps": 4}},
        "objective.schedule.warmup_steps: expected 0 to 4 (the steps of the run",
        {"objective": {"schedule": {"warmup_steps": 4}}, "trainer": {"max_steps": 4}},
    ),
    "negative warm-up": (
        {"objective": {"schedule": {"warmup_steps": -1}}, "trainer": {"max_epochs": 1}},
        "objective.schedule.warmup_steps: expected at least 0, got -1",
        {"objective": {"schedule": {"warmup_steps": 9}}, "trainer": {"max_epochs": 1}},
    ),
    "warm-up of a constant": (
        {"objective": {"schedule": {"name": "constant", "warmup_steps": 3}}},
        "objective.schedule.warmup_steps: got 3, but 'constant' has no warm-up",
        {"objective": {"schedule": {"name": "constant_with_warmup", "warmup_steps": 3}}},
    ),
    "interval in batches with validation per epoch": (
        {"trainer": {**CPU, "check_val_every_n_epoch": 1, "val_check_interval": 50}},
        "trainer.check_val_every_n_epoch: 1 needs trainer.val_check_interval=1.0",
        {"trainer": {**CPU, "check_val_every_n_epoch": 1, "val_check_interval": 1.0}},
    ),
    "interval as a share without validation per epoch": (
        {"trainer": {**CPU, "check_val_every_n_epoch": None, "val_check_interval": 0.5}},
        "trainer.val_check_interval: 0.5 is a share of an epoch",
        {"trainer": {**CPU, "check_val_every_n_epoch": None, "val_check_interval": 5}},
    ),
    "more than an epoch": (
        {"trainer": {**CPU, "check_val_every_n_epoch": 2, "val_check_interval": 1.5}},
        "trainer.val_check_interval: expected a number of batches, or a share of an epoch",
        {"trainer": {**CPU, "check_val_every_n_epoch": 2, "val_check_interval": 0.5}},
    ),
    "half a step": (
        {"trainer": {**CPU, "max_steps": 1.5}},
        "trainer.max_steps: expected a whole number of at least 1 (or null or -1), got 1.5",
        {"trainer": {**CPU, "max_steps": 2}},
    ),
    "DeepSpeed on CPU": (
        {"strategy": {"_target_": DEEPSPEED}, "trainer": CPU},
        "strategy: DeepSpeed runs on GPUs",
        {"strategy": {"_target_": "lightning.pytorch.strategies.DDPStrategy"}, "trainer": CPU},
    ),
    "all CPUs": (
        {"trainer": {**CPU, "devices": -1}},
        "trainer.devices: on CPU expected a number of processes, got -1",
        {"trainer": {**CPU, "devices": 2}},
    ),
    "flash-attn on CPU": (
        {"model": {"attn_implementation": "flash_attention_2"}, "trainer": CPU},
        "model.attn_implementation: flash_attention_2 cannot run on trainer.accelerator=cpu",
        {"model": {"attn_implementation": "sdpa"}, "trainer": CPU},
    ),
    "float16 on CPU": (
        {"trainer": {**CPU, "precision": "16-mixed"}},
        "trainer.precision: 16-mixed is not supported",
        {"trainer": {**CPU, "precision": "bf16-mixed"}},
    ),
    "Lightning's clipping": (
        {"trainer": {**CPU, "gradient_clip_val": 1.0}},
        "trainer.gradient_clip_val: must be null, got 1.0",
        {"trainer": {**CPU, "gradient_clip_val": None}},
    ),
    "Lightning's accumulation": (
        {"trainer": {**CPU, "accumulate_grad_batches": 4}},
        "trainer.accumulate_grad_batches: must be 1, got 4",
        {"trainer": {**CPU, "accumulate_grad_batches": 1}},
    ),
    "no end": (
        {"trainer": {"max_steps": -1, "max_epochs": None}},
        "trainer.max_steps: set it or trainer.max_epochs",
        {"trainer": {"max_steps": -1, "max_epochs": 2}},
    ),
    "missing videos": (
        {"data": {"on_missing": "ignore"}},
        "data.on_missing: expected error or skip, got 'ignore'",
        {"data": {"on_missing": "skip"}},
    ),
    "negative workers": (
        {"prepare": {"num_workers": -1, "timeout_s": None}},
        "prepare.num_workers: expected a number of processes (0: none, null: all CPUs), got -1",
        {"prepare": {"num_workers": 0, "timeout_s": None}},
    ),
    "half a worker": (
        {"prepare": {"num_workers": 1.5}},
        "prepare.num_workers: expected a number of processes",
        {"prepare": {"num_workers": None}},
    ),
    "no time at all": (
        {"prepare": {"timeout_s": 0}},
        "prepare.timeout_s: expected seconds above 0 (null: no limit), got 0",
        {"prepare": {"timeout_s": 0.5}},
    ),
    "time as a word": (
        {"prepare": {"timeout_s": "soon"}},
        "prepare.timeout_s: expected seconds above 0 (null: no limit), got 'soon'",
        {"prepare": {"timeout_s": 1}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rule_refuses_bad_config_only(case):
    bad, message, good = CASES[case]
    found = problems(bad)
    assert len(found) == 1
    assert found[0].startswith(message)
    assert problems(good) == []


def test_rules_accept_missing_sections():
    assert problems({}) == []
    assert problems({"objective": None, "trainer": None, "data": "x", "reward": []}) == []


@pytest.mark.parametrize("is_installed", [True, False])
def test_8_bit_optimizer_needs_bitsandbytes(monkeypatch, is_installed):
    monkeypatch.setattr(
        "tvg.core.limits.find_spec", lambda name: object() if is_installed else None
    )
    found = problems(
        {"objective": {"optimizer": {"_target_": "tvg.training.optimizers.adamw_8bit"}}}
    )
    wanted = ["objective.optimizer: 8-bit AdamW needs bitsandbytes: pip install 'tvg[bnb]', or "]
    assert [problem[: len(wanted[0])] for problem in found] == wanted * (not is_installed)
    assert problems({"objective": {"optimizer": {"_target_": ADAM}}}) == []
