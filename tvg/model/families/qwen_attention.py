"""Attention of the vision tower, with one call for all windows of equal length.

Unless flash-attention is installed, transformers calls its attention function once per window (once
per frame in the full-attention blocks): thousands of small calls for one clip. Windows of equal
length need no mask, so they can form the batch of a single call. The results are the same.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from tvg.model.attention_choice import chosen_attention


def batch_windows(model: Any) -> None:
    """Replaces the attention of a Qwen-VL vision tower with few large calls.

    A matrix product also replaces the patch embedding. The tower has a `patch_embed` and
    `blocks`, each with an `attn`. Attributes, signatures and rotary embedding of these modules are
    the same in Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

    Only `attn_implementation="sdpa"` is changed: flash-attention does not need it, and "eager" is
    for inspection. Parameters and state dict do not change.
    """
    if chosen_attention(model.config) != "sdpa":
        return
    visual = model.model.visual
    visual.patch_embed.forward = MethodType(_embed, visual.patch_embed)
    for block in visual.blocks:
        block.attn.forward = MethodType(_attend, block.attn)


def _embed(embedding: Any, patches: Tensor) -> Tensor:
    """Computes the patch embedding as a matrix product: [S, patch values] -> [S, hidden].

    This equals the convolution, because its stride is its kernel size.
    """
    weight, bias = embedding.proj.weight, embedding.proj.bias
    return linear(patches.to(weight.dtype), weight.view(embedding.embed_dim, -1), bias)


def _attend(
    attention: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    **ignored: Any,
) -> Tensor:
    """Computes attention within windows: [S, hidden] -> [S, hidden].

    Args:
        attention: the module whose `forward` this is.
        hidden_states: S patches, window after window.
        cu_seqlens: int [windows + 1], boundaries of the windows.
        position_embeddings: (cos, sin) of the rotary embedding, each [S, head size].
        ignored: arguments of other attention functions, such as the longest window.
    """
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    num_patches = hidden_states.shape[0]
    query, key, value = (
        attention.qkv(hidden_states).reshape(num_patches, 3, attention.num_heads, -1).unbind(1)
    )
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).to(hidden_states.device)
    order, groups = _by_length(cu_seqlens[:-1].to(hidden_states.device), lengths)
    attended = []
    start = 0
    for length, count in groups:
        rows = slice(start, start := start + length * count)
        q, k, v = (
            states[order[rows]].view(count, length, attention.num_heads, -1).transpose(1, 2)
            for states in (query, key, value)
        )
        out = scaled_dot_product_attention(q, k, v, scale=attention.scaling)
        attended.append(out.transpose(1, 2).reshape(count * length, -1))
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(num_patches, device=order.device)
    projected: Tensor = attention.proj(torch.cat(attended)[inverse])
    return projected


def _by_length(starts: Tensor, lengths: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """Orders patches so that windows of equal length are adjacent.

    Returns:
        (patch numbers int64 [S], [(length, number of windows), ...]).
    """
    groups, numbers = [], []
    for length in lengths.unique().tolist():
        if length == 0:
            continue
        first = starts[lengths == length].long()
        groups.append((int(length), len(first)))
        numbers.append((first[:, None] + torch.arange(length, device=first.device)).flatten())
    return torch.cat(numbers), groups
