"""Packs prompts and their completions into one row of tokens; every prompt appears once.

The row of B prompts with G completions each is [p1, c11 ... c1G, p2, c21 ...], without padding.
Matrix products, norms and MLPs process T tokens. Only attention (`tvg.model.prefix_attention`)
has to know that a completion follows its prompt, not the preceding completion.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Group:
    """b prompts of equal length P; attention pads their completions to the longest, C."""

    prompts: Tensor  # int64 [b, P], positions in the row
    completions: Tensor  # int64 [b, G, C], positions in the row; padding points to a real token
    is_real: Tensor  # bool [b, G, C]

    @cached_property
    def real_rows(self) -> Tensor:
        """Indices of the real tokens among all b * G * C; cached: `nonzero` waits for the GPU."""
        return self.is_real.flatten().nonzero()[:, 0]

    @cached_property
    def real_places(self) -> Tensor:
        """Positions of the real tokens in the row."""
        return self.completions.flatten()[self.real_rows]


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """Positions of the tokens of B prompts and N = B * G completions in one row of T tokens."""

    num_tokens: int  # T
    prompt_places: Tensor  # int64 [real prompt tokens], prompt after prompt
    completion_places: Tensor  # int64 [M], completion after completion
    # int64 [K], ascending: positions whose final states are read, and each prompt's last position
    needed: Tensor
    sources: Tensor  # int64 [M], index into `needed` of the state that predicts each token
    groups: list[Group]


def pack(prompt_mask: Tensor, completion_mask: Tensor, *, group_size: int) -> PackedRow:
    """Computes the positions of all tokens in a packed row.

    Args:
        prompt_mask: int64 [B, P], left-padded.
        completion_mask: int64 [N, C], right-padded; row n answers prompt n // group_size. A
            completion may be empty, and C may be 0.
        group_size: completions per prompt, G.
    """
    device = prompt_mask.device
    num_prompts = prompt_mask.shape[0]
    assert completion_mask.shape[0] == num_prompts * group_size, completion_mask.shape
    assert (completion_mask.diff(dim=1) <= 0).all(), "completions have to be padded on the right"
    prompt_lengths = prompt_mask.sum(1).cpu()
    lengths = completion_mask.sum(1).cpu().view(num_prompts, group_size)
    whole = prompt_lengths + lengths.sum(1)
    prompt_starts = whole.cumsum(0) - whole
    starts = prompt_starts[:, None] + prompt_lengths[:, None] + lengths.cumsum(1) - lengths
    groups = []
    for length in prompt_lengths.unique().tolist():
        rows = (prompt_lengths == length).nonzero()[:, 0]
        longest = int(lengths[rows].max())
        steps = torch.arange(longest)
        is_real = steps < lengths[rows][..., None]
        places = torch.where(
            is_real, starts[rows][..., None] + steps, prompt_starts[rows][:, None, None]
        )
        groups.append(
            Group(
                prompts=(prompt_starts[rows][:, None] + torch.arange(length)).to(device),
                completions=places.to(device),
                is_real=is_real.to(device),
            )
        )
    flat = lengths.flatten()
    completion_places = _ranges(starts.flatten(), flat)
    is_first = completion_places == torch.repeat_interleave(starts.flatten(), flat)
    ends = prompt_starts + prompt_lengths - 1
    before = torch.where(is_first, ends.repeat_interleave(lengths.sum(1)), completion_places - 1)
    needed = torch.cat([ends, before]).unique()
    return PackedRow(
        num_tokens=int(whole.sum()),
        prompt_places=_ranges(prompt_starts, prompt_lengths).to(device),
        completion_places=completion_places.to(device),
        needed=needed.to(device),
        sources=torch.searchsorted(needed, before).to(device),
        groups=groups,
    )


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Concatenates the ranges start, start + 1, ...: int64 [sum of lengths]."""
    ends = lengths.cumsum(0)
    inside = torch.arange(int(ends[-1]) if len(ends) else 0)
    return inside + torch.repeat_interleave(starts - (ends - lengths), lengths)
