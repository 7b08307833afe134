"""Computes log-probabilities of given tokens without the full logits in memory.

The full logits of a batch are its largest tensor by far (8.8 GiB per copy for 8 completions on a
3,900-token prompt with Qwen2.5's vocabulary of 152k tokens). This module computes the projection
onto the vocabulary for `chunk_tokens` rows at a time, and again in the backward pass. The gradients
of the log-probability, `(onehot - p) / temperature`, and of the entropy,
`-p * (log p + H) / temperature`, are coded by hand. The results are exact, not approximated.

The products with the head run in the dtype of its weights. With half-precision products
(`set_head_products`), their inputs are rounded to half precision and their sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tvg.core.limits import head_products_problems, refuse

_HALF = (torch.bfloat16, torch.float16)
# One setting per process, so that sampler, policy and reference cannot use different arithmetic.
_setting = "auto"
_kept: dict[torch.dtype, tuple[Tensor, Tensor]] | None = None  # dtype -> (weight, rounded weight)


def set_head_products(kind: str) -> None:
    """Chooses the arithmetic of all products with the language-model head in this process.

    Args:
        kind: "full" computes in the dtype of the weights. "half" rounds both inputs to half
            precision and sums in float32, if weights or states are in half precision or autocast
            is on. "auto" is "half" on GPUs and "full" on CPUs.

    Raises:
        ValueError: `kind` is unknown.
    """
    global _setting
    refuse(head_products_problems(kind))
    _setting = kind


def rounded_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype | None:
    """Returns the dtype to which the inputs of a head product are rounded; None: not rounded."""
    is_on = _setting == "half" or (_setting == "auto" and hidden.device.type == "cuda")
    if not is_on or weight.dtype == torch.float64:
        return None
    kind = hidden.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return next((d for d in (weight.dtype, autocast, hidden.dtype) if d in _HALF), None)


@contextmanager
def head_rounded_once() -> Iterator[None]:
    """Keeps the rounded head until exit; for sampling, which uses unchanged weights many times."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


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
    costs nothing if it is not used. The matrix product has the same arithmetic as the sampler's
    (`token_logits`). All later operations run in float32.

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
    rounded = rounded_dtype(hidden, weight)
    logprobs, entropy = _TokenLogprobs.apply(
        hidden, weight, token_ids, temperature, suppressed_ids, chunk_tokens, rounded
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
    rounded = rounded_dtype(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        head = _rounded(weight, rounded)
        return _logits(
            hidden, head, temperature, suppressed_ids, has_float32_sums=rounded is not None
        )


def _rounded(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Returns the head in the dtype of its products."""
    if dtype is None or weight.dtype == dtype:
        return weight
    if _kept is None:
        return weight.to(dtype)
    if dtype not in _kept or _kept[dtype][0] is not weight:
        _kept[dtype] = (weight, weight.to(dtype))
    return _kept[dtype][1]


def _product(left: Tensor, right: Tensor, *, has_float32_sums: bool) -> Tensor:
    """Returns left @ right; `has_float32_sums` returns float32 for inputs in half precision."""
    if not has_float32_sums:
        return left @ right
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    # Other devices lack this product. A product of two half-precision numbers is exact in float32,
    # so only the order of the sums can differ.
    return left.float() @ right.float()


def _logits(
    hidden: Tensor,
    head: Tensor,
    temperature: float,
    suppressed_ids: Tensor | None,
    *,
    has_float32_sums: bool,
) -> Tensor:
    """Returns logits [rows, V] in float32 (float64 if `head` is float64)."""
    logits = _product(hidden.to(head.dtype), head.t(), has_float32_sums=has_float32_sums)
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
        rounded: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        logprobs = hidden.new_empty(len(hidden), dtype=dtype)
        entropy = torch.empty_like(logprobs)
        normaliser = torch.empty_like(logprobs)
        # Autocast would run the product in half precision, regardless of the dtypes.
        with torch.autocast(hidden.device.type, enabled=False):
            head, sums = _rounded(weight, rounded), rounded is not None
            for rows in _chunks(len(hidden), chunk_tokens):
                logits = _logits(
                    hidden[rows], head, temperature, suppressed_ids, has_float32_sums=sums
                )
                picked = logits.gather(1, token_ids[rows, None])[:, 0]
                normaliser[rows] = logits.logsumexp(dim=1)
                logprobs[rows] = picked - normaliser[rows]
                probs = logits.sub_(normaliser[rows, None]).exp_()
                entropy[rows] = torch.special.entr(probs).sum(dim=1)
        ctx.save_for_backward(hidden, weight, token_ids, suppressed_ids, normaliser, entropy)
        ctx.temperature, ctx.chunk_tokens, ctx.rounded = temperature, chunk_tokens, rounded
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
            head, sums = _rounded(weight, ctx.rounded), ctx.rounded is not None
            for rows in _chunks(len(hidden), ctx.chunk_tokens):
                logits = _logits(
                    hidden[rows], head, ctx.temperature, suppressed_ids, has_float32_sums=sums
                )
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
                grad_product = grad_logits.to(head.dtype)
                if grad_hidden is not None:
                    grad = _product(grad_product, head, has_float32_sums=sums)
                    grad_hidden[rows] = grad.to(hidden.dtype)
                if grad_weight is not None:
                    states = hidden[rows].to(head.dtype)
                    grad_weight += _product(grad_product.t(), states, has_float32_sums=sums)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


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
