"""Attention of completions that share their prompt, computed without copying the prompt.

A completion's queries attend to the keys of the prompt and to the keys of the completion. Every
flash kernel supports both calls: the first has no mask, the second is causal. The log-sum-exp of
the scores combines the two results, as for two blocks of keys inside a flash kernel.

Given the combined output and log-sum-exp, the kernel's backward returns the exact gradient of each
block. The backward pass therefore also consists of two plain calls (the identity used by ring
attention, arXiv 2310.01889). Keys and values of the prompt are stored once, not G times.
"""

from __future__ import annotations

import sys
from copy import copy
from typing import Any

import torch
from torch import Tensor

from tvg.model.attention_choice import choose_attention, chosen_attention
from tvg.model.attention_kernels import Attended, attend, attend_backward
from tvg.model.packing import Group, PackedRow

NAME = "tvg_shared_prefix"


def share_prefix(model: Any) -> None:
    """Prepares the language model of a Hugging Face model to attend over packed rows.

    Each attention module gets a copy of its config that selects `_attend`. Without a packed row,
    `_attend` calls the original implementation, so `generate` works as before.

    Raises:
        ValueError: a layer uses sliding-window attention, or the model uses attention dropout.
    """
    from transformers import AttentionInterface  # imported late: it loads most of the library

    AttentionInterface.register(NAME, _attend)
    layers = model.model.language_model.layers
    if not hasattr(layers[-1].self_attn, "tvg_is_last"):
        layers[-1].__class__ = _last_of(type(layers[-1]))
        layers[-1].self_attn.tvg_is_last = True
    for layer in layers:
        attention = layer.self_attn
        if getattr(attention, "sliding_window", None) is not None:
            raise ValueError(
                "policy.forward=shared_prefix: sliding-window attention is not supported; use "
                "policy.forward=repeated"
            )
        if chosen_attention(attention.config) != NAME:
            if getattr(attention, "attention_dropout", 0.0):
                raise ValueError(
                    "model.path: attention_dropout must be 0, or sampler and trainer would "
                    f"differ; config.json has {attention.attention_dropout}"
                )
            attention.tvg_config = attention.config
            attention.config = copy(attention.config)
            choose_attention(attention.config, NAME)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed_row: PackedRow | Any = None,
    **rest: Any,
) -> tuple[Tensor, Any]:
    """Attention function for transformers: queries [1, H, T, d] to outputs [1, T, H, d]."""
    if packed_row is None:
        return _as_before(module, query, key, value, attention_mask, scaling=scaling, **rest)
    assert not rest.get("dropout"), "with attention dropout, sampler and trainer would differ"
    query, key, value = _at_one_precision(query, key, value)
    is_last = getattr(module, "tvg_is_last", False)
    if isinstance(packed_row, PackedRow):
        return attend_row(query, key, value, packed_row, scaling, is_last=is_last), None
    cached: Tensor = packed_row.attend(module.layer_idx, query, key, value, scaling)
    return cached, None


def attend_row(
    query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float, *, is_last: bool
) -> Tensor:
    """Computes attention in a packed row: queries [1, H, T, d], keys/values [1, K, T, d].

    Returns [1, T, H, d]. With `is_last`, only the outputs that the last layer needs are computed;
    the other positions are 0.
    """
    out: Tensor = _PrefixAttention.apply(query, key, value, row, scale, is_last)
    return out


def _last_of(kind: Any) -> Any:
    """Returns a subclass for the last decoder layer, whose forward maps [1, T, D] to [1, K, D].

    In the last layer, only a prompt's keys and values (for the completions) and its last token's
    state (for the head) are used. The MLP outputs of the other prompt tokens are never read, so
    they are not computed. A subclass is needed because newer versions of transformers implement
    gradient checkpointing in the class; setting `forward` on the layer would bypass it.
    """

    def forward(
        layer: Any,
        hidden_states: Tensor,
        *args: Any,
        packed_row: PackedRow | Any = None,
        **kwargs: Any,
    ) -> Tensor:
        needed = getattr(packed_row, "needed", None)
        if needed is None:
            out: Tensor = kind.forward(layer, hidden_states, *args, packed_row=packed_row, **kwargs)
            return out
        attended, _ = layer.self_attn(
            layer.input_layernorm(hidden_states), *args, packed_row=packed_row, **kwargs
        )
        states: Tensor = hidden_states[:, needed] + attended[:, needed]
        states = states + layer.mlp(layer.post_attention_layernorm(states))
        return states

    # Keep the class name: libraries use it to find the layers to wrap, or not to split.
    return type(kind.__name__, (kind,), {"forward": forward})


def _at_one_precision(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Casts to one dtype as autocast does for torch's attention.

    Rotary embeddings return float32 queries and keys under autocast.
    """
    device = query.device.type
    is_auto = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_auto else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _as_before(module: Any, *states: Any, **options: Any) -> tuple[Tensor, Any]:
    """Calls the model's original attention function with its original config."""
    from transformers import AttentionInterface

    eager = sys.modules[type(module).__module__].eager_attention_forward
    ours, module.config = module.config, module.tvg_config
    try:
        name = chosen_attention(module.config)
        function = AttentionInterface().get_interface(name, eager)
        out: tuple[Tensor, Any] = function(module, *states, **options)
        return out
    finally:
        module.config = ours


class _PrefixAttention(torch.autograd.Function):
    """Queries [1, H, T, d], keys and values [1, K, T, d] -> [1, T, H, d].

    H / K query heads share a key head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        row: PackedRow,
        scaling: float,
        is_last: bool,
    ) -> Tensor:
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        out = q.new_zeros(q.shape) if is_last else q.new_empty(q.shape)
        kept = []
        for group in row.groups:
            asking = group.prompts[:, -1:] if is_last else group.prompts
            prompt = [_pick(q, asking), _pick(k, group.prompts), _pick(v, group.prompts)]
            causal = attend(*prompt, is_causal=not is_last, scale=scaling)
            _put(out, asking, causal.out)
            parts = _completion_parts(q, k, v, group, prompt, scaling)
            if parts is not None:
                joined, lse, *states = parts
                _put_real(out, group, joined)
                kept.append((causal.lse, causal.state, lse, *states))
            else:
                kept.append((causal.lse, causal.state, None, (), ()))
        ctx.save_for_backward(query, key, value, out)
        ctx.row, ctx.scaling, ctx.is_last, ctx.kept = row, scaling, is_last, kept
        return out.unsqueeze(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out = ctx.saved_tensors
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        grads = [torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)]
        grad = grad_out[0].to(out.dtype)
        for group, kept in zip(ctx.row.groups, ctx.kept, strict=True):
            asking = group.prompts[:, -1:] if ctx.is_last else group.prompts
            _group_backward(grad, (q, k, v), out, group, asking, kept, ctx.scaling, grads)
        gq, gk, gv = (states.transpose(0, 1).unsqueeze(0) for states in grads)
        return gq, gk, gv, None, None, None


def _completion_parts(
    q: Tensor, k: Tensor, v: Tensor, group: Group, prompt: list[Tensor], scaling: float
) -> tuple[Tensor, Tensor, tuple[Any, ...], tuple[Any, ...]] | None:
    """Returns output [b * G, H, C, d] and log-sum-exp [b * G, H, C] of the completions' tokens.

    The kernel states of both calls follow. Returns None if the completions have no tokens.
    """
    if group.completions.shape[-1] == 0:
        return None
    num = group.completions.shape[1]
    before = attend(
        _pick(q, group.completions.flatten(1)), prompt[1], prompt[2], is_causal=False, scale=scaling
    )
    own = attend(
        *(_pick(states, group.completions.flatten(0, 1)) for states in (q, k, v)),
        is_causal=True,
        scale=scaling,
    )
    before_out, before_lse = _per_completion(before.out, num), _per_completion(before.lse, num)
    lse = torch.logaddexp(before_lse, own.lse)
    joined = before_out * (before_lse - lse).exp()[..., None]
    joined = joined + own.out * (own.lse - lse).exp()[..., None]
    return joined.to(q.dtype), lse, before.state, own.state


def _group_backward(
    grad: Tensor,
    states: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    group: Group,
    asking: Tensor,
    kept: tuple[Any, ...],
    scaling: float,
    grads: list[Tensor],
) -> None:
    """Writes the gradients of one group's tokens into `grads`, each [T, heads, d].

    `asking`: the prompt positions whose outputs were computed, int64 [b, P] or [b, 1].
    """
    causal_lse, causal_state, lse, before_state, own_state = kept
    q, k, v = states
    prompt = [_pick(q, asking), _pick(k, group.prompts), _pick(v, group.prompts)]
    gq, gk, gv = attend_backward(
        _pick(grad, asking),
        Attended(_pick(out, asking), causal_lse, causal_state),
        *prompt,
        is_causal=asking.shape == group.prompts.shape,
        scale=scaling,
    )
    if lse is not None:
        num = group.completions.shape[1]
        rows = group.completions.flatten(0, 1)
        own = [_pick(x, rows) for x in states]
        joined = _pick(out, rows)
        # Padding points to some real token, so its gradient must be zero.
        above = _pick(grad, rows) * group.is_real.flatten(0, 1)[:, None, :, None]
        own_q, own_k, own_v = attend_backward(
            above, Attended(joined, lse, own_state), *own, is_causal=True, scale=scaling
        )
        of_prefix = Attended(_per_prompt(joined, num), _per_prompt(lse, num), before_state)
        before_q, before_k, before_v = attend_backward(
            _per_prompt(above, num),
            of_prefix,
            _per_prompt(own[0], num),
            prompt[1],
            prompt[2],
            is_causal=False,
            scale=scaling,
        )
        _put_real(grads[0], group, own_q + _per_completion(before_q, num))
        _put_real(grads[1], group, own_k)
        _put_real(grads[2], group, own_v)
        gk, gv = gk + before_k, gv + before_v
    _put(grads[0], asking, gq)
    _put(grads[1], group.prompts, gk)
    _put(grads[2], group.prompts, gv)


def _pick(states: Tensor, places: Tensor) -> Tensor:
    """Returns the states [T, heads, d] at positions [b, L] as [b, heads, L, d]."""
    return states[places].transpose(1, 2)


def _put(states: Tensor, places: Tensor, values: Tensor) -> None:
    """Writes [b, heads, L, d] at positions [b, L] of [T, heads, d]."""
    states[places] = values.transpose(1, 2).to(states.dtype)


def _put_real(states: Tensor, group: Group, values: Tensor) -> None:
    """Writes [b * G, heads, C, d] at the completions' positions, without padding."""
    rows = values.transpose(1, 2).flatten(0, 1)[group.real_rows]
    states[group.real_places] = rows.to(states.dtype)


def _per_completion(values: Tensor, num: int) -> Tensor:
    """Reshapes [b, heads, G * C, ...] to [b * G, heads, C, ...]."""
    return values.unflatten(2, (num, -1)).transpose(1, 2).flatten(0, 1)


def _per_prompt(values: Tensor, num: int) -> Tensor:
    """Reshapes [b * G, heads, C, ...] to [b, heads, G * C, ...]."""
    return values.unflatten(0, (-1, num)).transpose(1, 2).flatten(2, 3)
