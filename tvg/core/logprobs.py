"""Computes log-probabilities of given tokens without the full logits in memory.

The full logits of a batch are its largest tensor by far (8.8 GiB per copy for 8 completions on a
3,900-token prompt with Qwen2.5's vocabulary of 152k tokens). This module computes the projection
onto the vocabulary for `chunk_tokens` rows at a time, and again in the backward pass. The gradients
of the log-probability, `(onehot - p) / temperature`, and of the entropy,
`-p * (log p + H) / temperature`, are coded by hand. The results are exact, not approximated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    suppressed_ids: Tensor | None = None,
    chunk_tokens: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Computes the log-probability of each token under softmax(hidden @ weight.T / temperature).

    Log-probability and entropy are differentiable in `hidden` and `weight`. The entropy's gradient
    costs nothing if it is not used. The matrix product runs in the dtype of `weight`: in half
    precision, it is rounded in the same way as the sampler's logits. All later operations run in
    float32.

    Args:
        hidden: [M, D], last hidden state at the position that predicts each token.
        weight: [V, D] of the language-model head (no bias).
        token_ids: int64 [M].
        temperature: temperature of the sampling distribution, > 0.
        suppressed_ids: int64 [S], ids that cannot be sampled: their logits are -inf before the
            softmax. A suppressed token has log-probability -inf, and its logit gets no gradient.
        chunk_tokens: rows of logits computed together, i.e. at most chunk_tokens x V numbers.

    Returns:
        logprobs [M] and entropy [M] (in nats) of the same tempered and suppressed distribution,
        both float32 (float64 if `weight` is float64).

    Raises:
        ValueError: if temperature or chunk_tokens is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive: got {temperature}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1: got {chunk_tokens}")
    assert hidden.shape[1:] == weight.shape[1:], (hidden.shape, weight.shape)
    assert token_ids.shape == hidden.shape[:1], (token_ids.shape, hidden.shape)
    logprobs, entropy = _TokenLogprobs.apply(
        hidden, weight, token_ids, temperature, suppressed_ids, chunk_tokens
    )
    return logprobs, entropy


def _chunks(num_rows: int, chunk_tokens: int) -> Iterator[slice]:
    for start in range(0, num_rows, chunk_tokens):
        yield slice(start, min(start + chunk_tokens, num_rows))


def token_logits(
    hidden: Tensor, weight: Tensor, *, temperature: float, suppressed_ids: Tensor | None
) -> Tensor:
    """Returns the logits for sampling, [M, V], of the few rows of one decoding step.

    The arguments are those of `token_logprobs`. The logits are the same, also under autocast.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return _logits(hidden, weight, temperature, suppressed_ids)


def _logits(
    hidden: Tensor, weight: Tensor, temperature: float, suppressed_ids: Tensor | None
) -> Tensor:
    """Returns logits [rows, V] in float32 (float64 if `weight` is float64)."""
    logits = hidden.to(weight.dtype) @ weight.t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits.div_(temperature)
    if suppressed_ids is not None:
        logits.index_fill_(1, suppressed_ids, -torch.inf)
    return logits


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        token_ids: Tensor,
        temperature: float,
        suppressed_ids: Tensor | None,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        logprobs = hidden.new_empty(len(hidden), dtype=dtype)
        entropy = torch.empty_like(logprobs)
        normaliser = torch.empty_like(logprobs)
        # Autocast would run the product in half precision, regardless of the dtypes.
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(len(hidden), chunk_tokens):
                logits = _logits(hidden[rows], weight, temperature, suppressed_ids)
                picked = logits.gather(1, token_ids[rows, None])[:, 0]
                normaliser[rows] = logits.logsumexp(dim=1)
                logprobs[rows] = picked - normaliser[rows]
                probs = logits.sub_(normaliser[rows, None]).exp_()
                entropy[rows] = torch.special.entr(probs).sum(dim=1)
        ctx.save_for_backward(hidden, weight, token_ids, suppressed_ids, normaliser, entropy)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)  # None instead of zeros for an unused output
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, token_ids, suppressed_ids, normaliser, entropy = ctx.saved_tensors
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(normaliser)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Summed over chunks in float32: small terms would be lost in a half-precision sum.
        grad_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if needs_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(len(hidden), ctx.chunk_tokens):
                logits = _logits(hidden[rows], weight, ctx.temperature, suppressed_ids)
                logits.sub_(normaliser[rows, None])
                grad_logits = _grad_logits(
                    logits,
                    token_ids[rows],
                    grad_logprobs[rows],
                    entropy[rows],
                    None if grad_entropy is None else grad_entropy[rows],
                )
                if ctx.temperature != 1.0:
                    grad_logits.div_(ctx.temperature)
                if suppressed_ids is not None:
                    grad_logits.index_fill_(1, suppressed_ids, 0)
                grad_product = grad_logits.to(weight.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = (grad_product @ weight).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight += grad_product.t() @ hidden[rows].to(weight.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _grad_logits(
    logps: Tensor,
    token_ids: Tensor,
    grad_logprobs: Tensor,
    entropy: Tensor,
    grad_entropy: Tensor | None,
) -> Tensor:
    """Returns the gradient w.r.t. the tempered logits, [rows, V]; overwrites `logps` [rows, V].

    `grad_logprobs * (onehot - p) - grad_entropy * p * (log p + H)`; NaN for suppressed tokens.
    """
    picked = grad_logprobs[:, None].to(logps.dtype)
    if grad_entropy is None:
        grads = logps.exp_().mul_(-picked)
    else:
        probs = logps.exp()
        grads = logps.add_(entropy[:, None]).mul_(-grad_entropy[:, None].to(logps.dtype))
        grads = grads.sub_(picked).mul_(probs)
    return grads.scatter_add_(1, token_ids[:, None], picked)
