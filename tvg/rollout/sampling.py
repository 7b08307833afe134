"""Draws tokens with random numbers that depend only on seed, query and index in the group."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def uniforms(qids: Sequence[str], *, group_size: int, num_tokens: int, seed: int) -> Tensor:
    """Returns one uniform random number in [0, 1) per token of each completion.

    Each completion has a separate generator, so its draws do not depend on the other prompts in the
    batch. A query that occurs twice in a batch gets different draws the second time.

    Returns:
        float64 [N, num_tokens].
    """
    seen: Counter[str] = Counter()
    rows = []
    for qid in qids:
        for number in range(group_size):
            text = f"{seed}/{qid}/{seen[qid]}/{number}"
            digest = hashlib.sha256(text.encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            rows.append(torch.rand(num_tokens, generator=generator, dtype=torch.float64))
        seen[qid] += 1
    return torch.stack(rows)


def draw(
    logits: Tensor, uniform: Tensor | None, *, top_p: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """Draws one token per row by inverting the cumulative distribution.

    Args:
        logits: float32 [N, V], divided by the temperature; suppressed tokens at -inf.
        uniform: float64 [N] in [0, 1); None selects the most likely token.
        top_p: draw from the smallest set of most likely tokens with at least this mass; 1.0: all.
        top_k: draw from this number of most likely tokens; 0: all.

    Returns:
        (ids int64 [N], log-probabilities [N] before any top_p or top_k).
    """
    logprobs = logits.log_softmax(-1)
    if uniform is None:
        ids = logits.argmax(-1)
    else:
        # float64, because in float32 the rounding error of a sum over 152k tokens exceeds the
        # probability of a rare token.
        probs = _likeliest(logprobs.double().exp(), top_p=top_p, top_k=top_k)
        cumulative = cumulative_sum(probs)
        aim = uniform[:, None] * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, aim, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return ids, logprobs.gather(1, ids[:, None])[:, 0]


def cumulative_sum(values: Tensor) -> Tensor:
    """Returns the cumulative sum over the last dimension.

    A GPU adds the terms in an order that may vary, so torch refuses `cumsum` there with
    trainer.deterministic=true. The sum then runs on the CPU.
    """
    if values.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return values.cumsum(-1)
    return values.cpu().cumsum(-1).to(values.device)


def _likeliest(probs: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """Returns the probabilities, set to 0 for tokens outside top_p and top_k."""
    if top_k > 0:
        kept = probs.topk(min(top_k, probs.shape[1]))
        probs = torch.zeros_like(probs).scatter(1, kept.indices, kept.values)
    if top_p < 1:
        ordered, places = probs.sort(-1, descending=True)
        mass_before = cumulative_sum(ordered) - ordered
        outside = mass_before >= top_p * probs.sum(-1, keepdim=True)
        probs = probs.scatter(1, places, ordered.masked_fill(outside, 0.0))
    return probs
