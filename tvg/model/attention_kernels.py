"""Attention functions that return the log-sum-exp of the scores and accept it in backward.

`torch.nn.functional.scaled_dot_product_attention` does not return the log-sum-exp, but its kernels
do. Device, dtype and head size select one of three implementations: the CPU flash kernel (any
dtype), the GPU flash kernel (half precision), or plain matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_aten = torch.ops.aten
CHUNK_QUERIES = 512  # query rows per chunk of the plain matrix products


class Attended(NamedTuple):
    """The results of an attention call."""

    out: Tensor  # [b, H, L, d]
    lse: Tensor  # [b, H, L], natural logarithm; float32, or float64 for float64 states
    state: tuple[Any, ...]  # kernel state for backward


def attend(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, scale: float) -> Attended:
    """Computes attention of [b, H, L, d] over [b, K, S, d]; H / K query heads share a key head.

    `is_causal` requires L = S.
    """
    kernel = _kernel(query)
    if kernel == "cpu":
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, scale=scale
        )
        return Attended(out, lse, ())
    if kernel == "cuda":
        out, lse, *state = _aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, is_causal, False, scale=scale
        )
        return Attended(out, lse, tuple(state[:6]))
    outs, lses = [], []
    for rows in _chunks(query):
        scores = _scores(query, key, rows, is_causal=is_causal, scale=scale)
        lses.append(scores.logsumexp(-1))
        probs = (scores - lses[-1][..., None]).exp().to(value.dtype)
        outs.append((probs @ _per_query_head(value, query)).to(query.dtype))
    return Attended(torch.cat(outs, dim=2), torch.cat(lses, dim=2), ())


def attend_backward(
    grad_out: Tensor,
    attended: Attended,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of query, key and value for one block of keys.

    The attention may be over more keys than this block. `attended` holds the output and log-sum-exp
    of the attention over all keys, and the kernel state of this block.
    """
    out, lse, state = attended
    kernel = _kernel(query)
    grads: tuple[Tensor, Tensor, Tensor]
    if kernel == "cpu":
        grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, query, key, value, out, lse, 0.0, is_causal, scale=scale
        )
        return grads
    if kernel == "cuda":
        cum_q, cum_k, max_q, max_k, seed, offset = state
        grads = _aten._scaled_dot_product_flash_attention_backward(
            grad_out, query, key, value, out, lse.contiguous(), cum_q, cum_k, max_q, max_k, 0.0,
            is_causal, seed, offset, scale=scale,
        )  # fmt: skip
        return grads
    return _plain_backward(grad_out, query, key, value, out, lse, is_causal=is_causal, scale=scale)


def _kernel(query: Tensor) -> str:
    if query.device.type == "cpu":
        return "cpu"
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    if query.device.type != "cuda" or not is_half or not _fits_flash(query.shape[-1]):
        return "plain"
    return "cuda" if torch.cuda.get_device_capability(query.device) >= (8, 0) else "plain"


def _fits_flash(head_size: int) -> bool:
    return head_size <= 256 and head_size % 8 == 0


def _chunks(query: Tensor) -> Iterator[slice]:
    """Yields slices of query rows, to limit the memory for the scores of a long prompt."""
    for start in range(0, query.shape[2], CHUNK_QUERIES):
        yield slice(start, min(start + CHUNK_QUERIES, query.shape[2]))


def _per_query_head(states: Tensor, query: Tensor) -> Tensor:
    return states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)


def _scores(query: Tensor, key: Tensor, rows: slice, *, is_causal: bool, scale: float) -> Tensor:
    """Returns the scores of some queries against all keys, [b, H, rows, S]."""
    scores = (query[:, :, rows] @ _per_query_head(key, query).mT).to(
        torch.promote_types(query.dtype, torch.float32)
    ) * scale
    if is_causal:
        places = torch.arange(key.shape[2], device=key.device)
        scores = scores.masked_fill(places > places[rows, None], -torch.inf)
    return scores


def _plain_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, heads = lse.dtype, key.shape[1]
    keys, values = _per_query_head(key, query).to(dtype), _per_query_head(value, query).to(dtype)
    grad_query = torch.empty_like(query, dtype=dtype)
    grad_key, grad_value = torch.zeros_like(keys), torch.zeros_like(values)
    for rows in _chunks(query):
        grad = grad_out[:, :, rows].to(dtype)
        scores = _scores(query, key, rows, is_causal=is_causal, scale=scale)
        probs = (scores - lse[:, :, rows, None]).exp()
        through = (grad * out[:, :, rows].to(dtype)).sum(-1, keepdim=True)
        grad_scores = probs * (grad @ values.mT - through) * scale
        grad_query[:, :, rows] = grad_scores @ keys
        grad_key += grad_scores.mT @ query[:, :, rows].to(dtype)
        grad_value += probs.mT @ grad
    shared = (grad.unflatten(1, (heads, -1)).sum(2) for grad in (grad_key, grad_value))
    grad_key, grad_value = shared
    return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype)
