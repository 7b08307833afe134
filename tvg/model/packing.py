"""One row of tokens for prompts and their completions; every prompt appears once.

The row of B prompts with G completions each is [p1, c11 ... c1G, p2, c21 ...], without any padding.
Matrix products, norms and MLPs see T tokens; only attention (`tvg.model.prefix_attention`) knows
that a completion follows its prompt and not the completion before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Group:
    """b prompts of one length P; for attention, their completions are padded to the longest, C."""

    prompts: Tensor  # int64 [b, P], places in the row
    completions: Tensor  # int64 [b, G, C], places in the row; padding repeats some real place
    is_real: Tensor  # bool [b, G, C]

    @cached_property
    def real_rows(self) -> Tensor:
        """Numbers of the real tokens among all b * G * C: found once, it makes a GPU wait."""
        return self.is_real.flatten().nonzero()[:, 0]

    @cached_property
    def real_places(self) -> Tensor:
        """Their places in the row."""
        return self.completions.flatten()[self.real_rows]


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """Where the tokens of B prompts and N = B * G completions stand in one row of T tokens."""

    num_tokens: int  # T
    prompt_places: Tensor  # int64 [real prompt tokens], prompt after prompt
    completion_places: Tensor  # int64 [M], completion after completion
    # int64 [K], ascending: places whose last states are read, prompts' ends among them
    needed: Tensor
    sources: Tensor  # int64 [M]: which of the K predicts each completion token
    groups: list[Group]


def pack(prompt_mask: Tensor, completion_mask: Tensor, *, group_size: int) -> PackedRow:
    """Lays out a row.

    Args:
        prompt_mask: int64 [B, P], left-padded.
        completion_mask: int64 [N, C], right-padded; row n answers prompt n // group_size. A
            completion may be empty, and C may be 0.
        group_size: completions a prompt, G.
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
    """start, start + 1, ... of each range, one range after the other: int64 [sum of lengths]."""
    ends = lengths.cumsum(0)
    inside = torch.arange(int(ends[-1]) if len(ends) else 0)
    return inside + torch.repeat_interleave(starts - (ends - lengths), lengths)
