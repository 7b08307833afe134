"""Key/value cache for sampling, with one copy per prompt that its group's completions share."""

from __future__ import annotations

import torch
from torch import Tensor

from tvg.model.packing import PackedRow
from tvg.model.prefix_attention import attend_row


class Prefill:
    """Attends over the prompts of a row and stores their keys and values.

    Args:
        row: a row of prompts without completions.
        prompt_mask: int64 [B, P], left-padded.
    """

    def __init__(self, row: PackedRow, prompt_mask: Tensor) -> None:
        self.row = row
        self.needed = row.needed  # in the last layer: the prompts' last tokens
        self.is_real = prompt_mask.bool()
        self._rows = self.is_real.flatten().nonzero()[:, 0]
        self.keys: list[Tensor] = []  # per layer: [B, K, P, d], 0 at padding
        self.values: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        assert layer == len(self.keys)
        self.keys.append(self._per_prompt(key))
        self.values.append(self._per_prompt(value))
        return attend_row(query, key, value, self.row, scale, is_last=False)

    def _per_prompt(self, states: Tensor) -> Tensor:
        """Scatters the row's states [1, K, T, d] to [B, K, P, d]."""
        flat = states[0].transpose(0, 1)
        padded = flat.new_zeros((self.is_real.numel(), *flat.shape[1:]))
        padded[self._rows] = flat[self.row.prompt_places]
        return padded.unflatten(0, self.is_real.shape).transpose(1, 2).contiguous()


class Decoding:
    """Attention for one new token of each of N = B * G completions per step.

    One matrix product computes a group's scores against its prompt, so the prompt's keys are read
    once, not G times. The row of a step is [1, N], in the order of the completions. Scores are
    always at least float32, as in the training kernels: if large scores were rounded to half
    precision, sampler and trainer would differ.

    Args:
        prefill: prefill of the B prompts.
        group_size: completions per prompt, G.
        max_steps: capacity in tokens per completion.
    """

    def __init__(self, prefill: Prefill, *, group_size: int, max_steps: int) -> None:
        self.group_size = group_size
        self.step = 0
        self.dtype = torch.promote_types(prefill.keys[0].dtype, torch.float32)  # dtype of scores
        self.prompt_keys = [keys.to(self.dtype).mT for keys in prefill.keys]  # [B, K, d, P]
        self.prompt_values = prefill.values
        num_prompts, num_heads, _, head_size = prefill.keys[0].shape
        shape = (num_prompts * group_size, num_heads, max_steps, head_size)
        self.keys = [keys.new_empty(shape, dtype=self.dtype) for keys in prefill.keys]
        self.values = [keys.new_empty(shape) for keys in prefill.keys]
        hidden = ~prefill.is_real[:, None, None, :]
        self.padding = hidden if bool(hidden.any()) else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Maps [1, H, N, d] queries to [1, N, H, d] outputs."""
        with torch.autocast(query.device.type, enabled=False):  # autocast would round the scores
            return self._attend(layer, query, key, value, scale)

    def _attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.step] = key[0].transpose(0, 1)
        values[:, :, self.step] = value[0].transpose(0, 1)
        keys, values = keys[:, :, : self.step + 1], values[:, :, : self.step + 1]
        num_heads, group = keys.shape[1], self.group_size
        # [H, N, d] -> [N, K, query heads per key head, d]
        q = query[0].to(self.dtype).unflatten(0, (num_heads, -1)).permute(2, 0, 1, 3) * scale
        own = q @ keys.mT
        shared = _together(q, group) @ self.prompt_keys[layer]
        if self.padding is not None:
            shared = shared.masked_fill(self.padding, -torch.inf)
        scores = torch.cat([shared, _together(own, group)], dim=-1)
        probs = scores.softmax(-1).to(value.dtype)
        num_prompt = shared.shape[-1]
        out = _apart(probs[..., :num_prompt] @ self.prompt_values[layer], group)
        out = out + _apart(probs[..., num_prompt:], group) @ values
        return out.flatten(1, 2).unsqueeze(0)


def _together(states: Tensor, group: int) -> Tensor:
    """Reshapes [B * G, K, r, x] to [B, K, G * r, x]."""
    return states.unflatten(0, (-1, group)).transpose(1, 2).flatten(2, 3)


def _apart(states: Tensor, group: int) -> Tensor:
    """Reshapes [B, K, G * r, x] to [B * G, K, r, x]."""
    return states.unflatten(2, (group, -1)).transpose(1, 2).flatten(0, 1)
