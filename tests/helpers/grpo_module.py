"""Builds a GRPO module without `Trainer.fit`, and runs single updates of it."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any

import torch
from helpers.tiny_policy import make_rollout, sample_with
from lightning.pytorch import Trainer
from torch import Tensor

from tvg.core import surrogate
from tvg.core.advantage import group_advantages
from tvg.objective.policy_gradient import PolicyObjective
from tvg.reward.weighted import WeightedReward
from tvg.training.grpo import GRPOModule
from tvg.training.schedule import warmup_schedule
from tvg.types import RolloutBatch


class Stepwise:
    """Reward from the text's length, which usually differs within a group."""

    def __call__(self, *, texts, answers, truths, durations_s):
        return [float(len(text) % 7) for text in texts]


def make_loss(**changes: Any) -> PolicyObjective:
    settings: dict[str, Any] = {
        "surrogate": surrogate.clipped,
        "ratio_level": "token",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "reduction": "token_mean",
        "max_tokens": 8,
        "kl_coef": 0.0,
        "kl_estimator": "k3",
        "kl_in": "loss",
        "entropy_coef": 0.0,
        "sampler_ratio_cap": None,
        "mask_truncated": False,
    }
    return PolicyObjective(**{**settings, **changes})


LOSS_KEYS = set(inspect.signature(PolicyObjective).parameters)


def make_module(parts: Any, **changes: Any) -> GRPOModule:
    """Returns a module that is ready to update; `changes` are keys of the module or its loss."""
    loss = make_loss(**{key: changes.pop(key) for key in LOSS_KEYS & changes.keys()})
    settings: dict[str, Any] = {
        "rollout": make_rollout(),
        "reward": WeightedReward(rewards={"odd": Stepwise()}, weights={"odd": 1.0}),
        "loss": loss,
        "group_size": 4,
        "advantage": functools.partial(
            group_advantages, baseline="group_mean", scale="group_std", eps=1e-4
        ),
        "num_updates": 1,
        "old_logprobs": "policy",
        "resample_flat_groups": None,
        "reference": "initial",
        "reference_offload": False,
        "micro_batch_completions": None,
        "scoring_fps": None,
        "preflight": None,
        "policy": parts.policy,
        "tokenizer": parts.tokenizer,
        "task": parts.task,
        "micro_batch_size": 1,
        "optimizer": functools.partial(torch.optim.SGD, lr=0.0),
        "schedule": functools.partial(warmup_schedule, name="constant", warmup_steps=0),
        "max_grad_norm": None,
        "max_skipped_steps": 5,
        "component_lr": {},
        "seed": 0,
    }
    module = GRPOModule(**{**settings, **changes})
    # Without `fit`, the module still needs a trainer (world size) and a plain backward.
    module._trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    module.manual_backward = torch.Tensor.backward
    module.setup("fit")
    return module


def learn(module: GRPOModule, rollout: RolloutBatch, advantages: Tensor) -> dict[str, Tensor]:
    """Back-propagates one update with the given advantages."""
    prepared = module.prepare(rollout, torch.zeros(len(rollout.completion_ids)))
    return module.update(replace(prepared, advantages=advantages))


def logprobs_of(module: GRPOModule, policy: Any, rollout: RolloutBatch) -> Tensor:
    return module.scorer.logprobs(policy, rollout)[0]


def sample(parts: Any, *, num: int, seed: int = 3) -> RolloutBatch:
    """Samples groups of four completions of different lengths."""
    policy_eos, parts.policy.eos_ids = parts.policy.eos_ids, list(range(0, 640, 12))
    sampled = sample_with(
        make_rollout(),
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        prompts=parts.batch(num),
        group_size=4,
        seed=seed,
    )
    parts.policy.eos_ids = policy_eos
    assert len(set(sampled.completion_mask.sum(1).tolist())) > 1, "completions of equal length"
    return sampled
