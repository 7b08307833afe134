"""Stages of a GRPO step with both methods, on the same weights, prompts and completions."""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass
from typing import Any

import torch
from common.shapes import FIRST_WORD, make_policy, make_prompts
from torch import Tensor

from tvg.core.advantage import group_advantages
from tvg.core.surrogate import clipped
from tvg.model.policy import Policy
from tvg.objective.policy_gradient import PolicyObjective
from tvg.rollout.engine import RolloutEngine
from tvg.rollout.hf import HFEngine
from tvg.rollout.shared_prefix import SharedPrefixEngine
from tvg.types import PromptBatch

METHODS = ("repeated", "shared_prefix")
OBJECTIVE = PolicyObjective(
    surrogate=clipped,
    ratio_level="token",
    clip_low=0.2,
    clip_high=0.2,
    reduction="token_mean",
    max_tokens=1,
    kl_coef=0.04,
    kl_estimator="k3",
    kl_in="loss",
    entropy_coef=0.0,
    sampler_ratio_cap=None,
    mask_truncated=False,
)
ROLLOUTS: dict[str, type[RolloutEngine]] = {
    "repeated": HFEngine,
    "shared_prefix": SharedPrefixEngine,
}


class NoTokenizer:
    """Returns empty texts, because the benchmark's tokens are random."""

    def batch_decode(self, rows: Any, **options: Any) -> list[str]:
        return [""] * len(rows)


@dataclass
class Bench:
    """One prompt of P tokens, G completions of C tokens, a policy and its frozen reference."""

    policy: Policy
    reference: Policy
    prompts: PromptBatch
    completion_ids: Tensor
    group_size: int
    optimizer: torch.optim.Optimizer
    autocast: torch.dtype | None

    def use(self, method: str) -> None:
        self.policy.forward_by = self.reference.forward_by = method
        self.policy.zero_grad(set_to_none=True)
        gc.collect()

    def learning(self, method: str) -> float:
        """Runs reference, policy and backward pass; returns the loss."""
        with self._precision():
            return self._learn(self._encoded(method))

    def sampling(self, method: str) -> None:
        """Runs the prefill and samples C tokens for each of G completions."""
        with self._precision():
            self._sample(method, self._encoded(method))

    def step(self, method: str) -> None:
        """Runs sampling, learning and the optimizer; `shared_prefix` encodes each clip once."""
        with self._precision():
            prompts = self._encoded(method)
            self._sample(method, prompts)
            self._learn(prompts)
        self.optimizer.step()

    def _encoded(self, method: str) -> PromptBatch:
        return self.policy.encode_clips(self.prompts) if method == "shared_prefix" else self.prompts

    def _precision(self) -> Any:
        return torch.autocast(
            self.policy.device.type,
            self.autocast or torch.bfloat16,
            enabled=self.autocast is not None,
        )

    def _sample(self, method: str, prompts: PromptBatch) -> None:
        rollout = ROLLOUTS[method](
            max_new_tokens=self.completion_ids.shape[1],
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            prompts_per_call=None,
        )
        rollout.setup(policy=self.policy, tokenizer=NoTokenizer())
        rollout.generate(prompts, group_size=self.group_size, seed=0)

    def _learn(self, prompts: PromptBatch) -> float:
        mask = torch.ones_like(self.completion_ids)
        scored = {"group_size": self.group_size, "temperature": 1.0}
        with torch.no_grad():
            ref_logprobs, _ = self.reference(prompts, self.completion_ids, mask, **scored)
        logprobs, entropy = self.policy(prompts, self.completion_ids, mask, **scored)
        rewards = torch.arange(len(mask), device=mask.device, dtype=torch.float32) % 3
        objective = PolicyObjective(
            surrogate=clipped,
            ratio_level="token",
            clip_low=0.2,
            clip_high=0.2,
            reduction="token_mean",
            max_tokens=mask.shape[1],
            kl_coef=0.04,
            kl_estimator="k3",
            kl_in="loss",
            entropy_coef=0.0,
            sampler_ratio_cap=None,
            mask_truncated=False,
        )
        output = objective(
            logprobs=logprobs,
            old_logprobs=logprobs.detach(),
            ref_logprobs=ref_logprobs,
            sampler_logprobs=None,
            policy_old_logprobs=None,
            entropy=entropy,
            advantages=group_advantages(
                rewards,
                group_size=self.group_size,
                baseline="group_mean",
                scale="group_std",
                eps=1e-4,
            ),
            loss_mask=mask,
            denominator=mask.sum().float(),
            num_tokens=mask.sum().float(),
        )
        output.loss.backward()
        return float(output.loss.detach())


def make_bench(
    shape: str,
    *,
    num_prompt_tokens: int,
    group_size: int,
    num_completion_tokens: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    checkpointing: bool = False,
) -> Bench:
    """Returns a bench with random weights and tokens.

    The reference is a copy of the policy with slightly different weights and shares the frozen
    trunk.
    """
    policy = make_policy(shape, forward_by="shared_prefix", device=device, dtype=dtype)
    frozen = {id(p): p for p in policy.parameters() if not p.requires_grad}
    reference = copy.deepcopy(policy, memo=frozen)
    for parameter in reference.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(1.01)
    reference.requires_grad_(False)
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
    prompts = make_prompts(policy, num=1, num_tokens=num_prompt_tokens, device=device, dtype=dtype)
    words = policy.model.config.text_config.vocab_size
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(
        FIRST_WORD, words, (group_size, num_completion_tokens), generator=generator
    ).to(device)
    trained = [p for p in policy.parameters() if p.requires_grad]
    return Bench(
        policy=policy,
        reference=reference,
        prompts=prompts,
        completion_ids=ids,
        group_size=group_size,
        optimizer=torch.optim.AdamW(trained, lr=1e-6, fused=device != "cpu"),
        autocast=autocast,
    )


def gradient_error(bench: Bench) -> float:
    """Returns the largest relative difference of a parameter's gradient between both methods."""
    grads = []
    for method in METHODS:
        bench.use(method)
        bench.learning(method)
        grads.append(
            {n: p.grad.clone() for n, p in bench.policy.named_parameters() if p.grad is not None}
        )
    expected, got = grads
    assert expected.keys() == got.keys()
    bench.use(METHODS[0])
    return max(
        float((got[n] - expected[n]).norm() / expected[n].norm().clamp(min=1e-20)) for n in expected
    )
