"""Completions, a GRPO loss and error measures for tests of the policy's two forward methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from helpers.objectives import make_objective
from torch import Tensor

from tvg.model.freezing import freeze_parts
from tvg.model.policy import Policy
from tvg.types import PromptBatch

FULL = 7  # tokens of a truncated completion
LENGTHS = [FULL, 0, 3, 1, FULL, FULL, 2, 5, 0, 0, 4, 6]  # three groups of four


@dataclass(frozen=True)
class Completions:
    """Random completions of given lengths, with the other inputs of a GRPO loss."""

    ids: Tensor  # int64 [N, C]
    mask: Tensor  # int64 [N, C]
    advantages: Tensor  # float64 [N]
    ref_logprobs: Tensor  # float64 [N, C]
    group_size: int


def completions(lengths: list[int], *, group_size: int = 4, seed: int = 0) -> Completions:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(FULL, *lengths))
    return Completions(
        ids=torch.randint(10, 500, shape, generator=generator),
        mask=(torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long(),
        advantages=torch.randn(shape[0], generator=generator, dtype=torch.float64),
        ref_logprobs=-4 - torch.rand(shape, generator=generator, dtype=torch.float64),
        group_size=group_size,
    )


@dataclass(frozen=True)
class PassResult:
    """Results of one forward and backward pass."""

    loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    gradients: dict[str, Tensor]


def learn(
    policy: Policy,
    prompts: PromptBatch,
    answers: Completions,
    *,
    forward_by: str,
    temperature: float = 1.0,
    autocast: bool = False,
) -> PassResult:
    """Computes the GRPO loss with its KL term, and all gradients, by one forward method."""
    policy.forward_by = forward_by
    policy.zero_grad(set_to_none=True)
    objective = make_objective(kl_coef=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logprobs, entropy = policy(
            policy.encode_clips(prompts),
            answers.ids,
            answers.mask,
            group_size=answers.group_size,
            temperature=temperature,
        )
    loss = objective(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        ref_logprobs=answers.ref_logprobs,
        sampler_logprobs=None,
        policy_old_logprobs=None,
        entropy=entropy,
        advantages=answers.advantages,
        loss_mask=answers.mask,
        denominator=objective.denominator(answers.mask),
        num_tokens=answers.mask.sum(),
    ).loss
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return PassResult(loss.detach(), logprobs.detach(), entropy.detach(), gradients)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference divided by the norm of `expected`."""
    return float((got - expected).norm() / expected.norm().clamp_min(1e-300))


def worst_errors(got: PassResult, expected: PassResult) -> dict[str, float]:
    """Returns relative errors; "gradient" is the largest error of any parameter's gradient."""
    assert got.gradients.keys() == expected.gradients.keys()
    return {
        "loss": relative_error(got.loss, expected.loss),
        "logprobs": relative_error(got.logprobs, expected.logprobs),
        "entropy": relative_error(got.entropy, expected.entropy),
        "gradient": max(
            relative_error(gradient, expected.gradients[name])
            for name, gradient in got.gradients.items()
        ),
    }


def train_only(policy: Policy, *, trunk: bool) -> Policy:
    """Unfreezes merger and language model; freezes the vision trunk unless `trunk`."""
    policy.requires_grad_(True)
    freeze_parts(policy.model, vision=not trunk, merger=False, language=False)
    return policy


def without_float32_inside(monkeypatch: Any) -> None:
    """Makes transformers compute norms and the vision tower's rotations in the model's dtype.

    transformers always casts both to float32. In a float64 model this causes an error of about
    5e-8 in gradients, because the order of the sums over completions changes their rounding.
    """
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as library

    def norm(self: Any, states: Tensor) -> Tensor:
        mean_square = states.pow(2).mean(-1, keepdim=True)
        return self.weight * (states * torch.rsqrt(mean_square + self.variance_epsilon))

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(-2).to(q.dtype), sin.unsqueeze(-2).to(q.dtype)
        half = library.rotate_half
        return q * cos + half(q) * sin, k * cos + half(k) * sin

    monkeypatch.setattr(library.Qwen2_5_VLRMSNorm, "forward", norm)
    monkeypatch.setattr(library, "apply_rotary_pos_emb_vision", rotate)
