"""Reference loss and advantages from TRL's GRPOTrainer, without a model.

The trainer is created without its constructor. The functions that compute log-probabilities and
rewards are replaced by given values. The rest is TRL's code: `_generate_and_score_completions`
(advantages and masks) and `_compute_loss`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from trl.trainer import grpo_trainer

PAD, EOS, WORD = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Completions with all inputs that a loss can use."""

    mask: Tensor  # int64 [N, C]
    is_finished: Tensor  # bool [N]
    rewards: Tensor  # float64 [N]
    group_size: int
    logprobs: Tensor  # [N, C], of the policy
    old_logprobs: Tensor  # [N, C], of the policy at sampling
    ref_logprobs: Tensor  # [N, C]
    sampler_logprobs: Tensor  # [N, C]; representable in float32
    entropy: Tensor  # [N, C]


@dataclass(frozen=True, kw_only=True)
class TRL:
    """TRL's results for a batch."""

    advantages: Tensor  # [N]
    loss: Tensor
    metrics: dict[str, float]


SETTINGS: dict[str, Any] = {  # settings that `run` can change
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "scale_rewards": "group",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "beta": 0.0,
    "entropy_coef": 0.0,
    "mask_truncated_completions": False,
    "max_completion_length": 16,
    "use_vllm": False,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_clip_max": None,
    "multi_objective_aggregation": "sum_then_normalize",
    "top_entropy_quantile": 1.0,
    "use_adaptive_entropy": False,
    "off_policy_mask_threshold": None,
    "aux_loss_enabled": False,
}


def run(batch: Batch, **changes: Any) -> TRL:
    """Returns TRL's results for a batch that is one optimizer step of one rank."""
    assert changes.keys() <= SETTINGS.keys(), changes
    trainer = _trainer(batch, {**SETTINGS, **changes})
    rows = [{"prompt": "?"} for _ in batch.mask]
    with mock.patch.object(grpo_trainer, "gather_object", lambda values: values):
        inputs = trainer._generate_and_score_completions(rows)
        loss = trainer._compute_loss(trainer.model, inputs)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return TRL(advantages=inputs["advantages"], loss=loss, metrics=metrics)


def _trainer(batch: Batch, settings: dict[str, Any]) -> Any:
    trainer = object.__new__(grpo_trainer.GRPOTrainer)
    lengths = batch.mask.sum(1).tolist()
    completion_ids = [
        [WORD] * (length - 1) + [EOS if is_finished else WORD]
        for length, is_finished in zip(lengths, batch.is_finished.tolist(), strict=True)
    ]
    sampler = [row[:n].tolist() for row, n in zip(batch.sampler_logprobs, lengths, strict=True)]

    def logprobs(model: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        if model is trainer.ref_model:
            return batch.ref_logprobs, batch.entropy, None
        mine = batch.logprobs if torch.is_grad_enabled() else batch.old_logprobs
        return mine, batch.entropy, None

    vars(trainer).update(
        settings,
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        ref_model=SimpleNamespace(),
        args=SimpleNamespace(
            delta=None,
            use_bias_correction_kl=False,
            # With two iterations per generation and one accumulation step, TRL uses the given
            # `old_logprobs` instead of the policy's detached log-probs.
            steps_per_generation=1,
            per_device_train_batch_size=len(batch.mask),
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
        ),
        num_iterations=2,
        current_gradient_accumulation_steps=1,
        num_generations=batch.group_size,
        _entropy_bonus_enabled=settings["entropy_coef"] != 0,
        _metrics={"train": defaultdict(list)},
        _logs=defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
        _tokenizer=SimpleNamespace(pad_token_id=PAD),
        eos_token_ids=[EOS],
        pad_to_multiple_of=None,
        environment_factories=None,
        environments=None,
        tools=[],
        log_multimodal=False,
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: ["?"] * len(ids)),
        reward_weights=torch.ones(1, dtype=torch.float64),
        reward_funcs=[None],
        reward_func_names=["given"],
        accelerator=SimpleNamespace(
            device=torch.device("cpu"),
            num_processes=1,
            process_index=0,
            is_main_process=False,
            sync_gradients=False,
            gather=lambda values: values,
            reduce=lambda values, reduction: values,
        ),
        _calculate_rewards=lambda *_: batch.rewards[:, None],
        _get_per_token_logps_and_entropies=logprobs,
        _generate=lambda prompts: (
            [[WORD]] * len(prompts),
            completion_ids,
            None,
            ["?"] * len(prompts),
            sampler,
            {},
            None,
            None,
        ),
    )
    return trainer
