"""Multimodal rotary position ids (time, height, width) of prompts with video.

This is the definition of the original Qwen2.5-VL release (arXiv 2502.13923; transformers 4.51 and
vLLM). Each text token increases the ids on all three axes by 1. If a clip's first token has
position p, the token at (t, h, w) of its merged grid has the ids
`p + floor(t * second_per_grid * tokens_per_second)`, `p + h`, `p + w`. The text after the clip
continues at the largest id used so far plus 1. transformers 5 instead continues at
p + max(height, width) and ignores the clip's length in time, so its ids must not be mixed with
these.

A clip may be split into several spans with text between them (times as text,
`prompt.frame_times`). Each span consists of complete time steps of the grid and is placed like a
separate clip: its ids start at the largest id so far plus 1, and its time steps start at 0. Across
spans, the ids then encode only the order, not seconds; the text states the times. With one span,
the result equals the definition above.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_PADDING_POSITION = 1  # never attended to; the released code also uses 1


class _Spans(NamedTuple):
    """Locations of K spans of video tokens in the batch, in reading order.

    A clip has one span unless times are written between its frames.
    """

    rows: Tensor  # int64 [K]
    columns: Tensor  # int64 [K], column of the first video token
    clips: Tensor  # int64 [K], index of the clip that the span belongs to
    grid: Tensor  # int64 [K, 3]: time steps of the span; height and width after the spatial merge
    num_tokens: Tensor  # int64 [K]


def mrope_position_ids(
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    video_grid_thw: Tensor,
    second_per_grid_s: Tensor,
    vision_start_id: int,
    video_token_id: int,
    spatial_merge: int,
    tokens_per_second: float,
) -> Tensor:
    """Returns the position ids of complete prompts, by the original Qwen2.5-VL definition.

    Args:
        input_ids: int64 [B, P], padded on either side, video placeholders expanded. A clip is a
            vision-start token followed by its video tokens, or several such spans, each of
            complete time steps. Clips are in reading order.
        attention_mask: [B, P], 0 at padding.
        video_grid_thw: int64 [clips, 3] in patches, before the spatial merge.
        second_per_grid_s: float64 [clips], seconds between neighbouring time steps of the grid:
            temporal patch size / actual sampling rate. float32 is accepted, but its rounding can
            move a time by one position.
        vision_start_id: token before each clip.
        video_token_id: placeholder of a video token.
        spatial_merge: number of patches along each side that are merged into one token.
        tokens_per_second: ids per second (2 in the released Qwen2.5-VL checkpoints).

    Returns:
        int64 [3, B, P]; 1 at padding.

    Raises:
        ValueError: if grids and rates do not match the clips found in `input_ids`.
    """
    if len(second_per_grid_s) != len(video_grid_thw):
        raise ValueError(
            "second_per_grid_s must have one value for each clip in video_grid_thw: "
            f"got {len(second_per_grid_s)} values, {len(video_grid_thw)} clips"
        )
    if second_per_grid_s.dtype not in (torch.float64, torch.float32):
        raise ValueError(f"second_per_grid_s must be float64: got {second_per_grid_s.dtype}")
    if not bool(((second_per_grid_s > 0) & torch.isfinite(second_per_grid_s)).all()):
        raise ValueError(f"second_per_grid_s must be positive: got {second_per_grid_s.tolist()}")
    device = input_ids.device
    is_token = attention_mask.bool()
    is_video = (input_ids == video_token_id) & is_token
    spans = _find_spans(
        (input_ids == vision_start_id) & is_token,
        is_video,
        video_grid_thw.to(device),
        spatial_merge,
    )
    seconds = second_per_grid_s.to(device)[spans.clips]

    num_times, height, width = spans.grid.unbind(dim=1)
    last_time = _time_ids(num_times - 1, seconds, tokens_per_second)
    extent = torch.maximum(last_time, torch.maximum(height, width) - 1) + 1
    # A text token's position is the number of preceding tokens. For an earlier span, the positions
    # that it occupies are counted instead of its tokens.
    steps = is_token.long()
    steps.index_put_(
        (spans.rows, spans.columns + spans.num_tokens - 1),
        extent - spans.num_tokens,
        accumulate=True,
    )
    counted = steps.cumsum(dim=1)
    text = counted - steps
    starts = text[spans.rows, spans.columns]

    positions = text.expand(3, -1, -1).clone()
    span_of, token = _tokens_of_spans(spans.num_tokens)
    time, in_frame = _divmod(token, (height * width)[span_of])
    row, column = _divmod(in_frame, width[span_of])
    ids = torch.stack([_time_ids(time, seconds[span_of], tokens_per_second), row, column])
    positions[:, spans.rows[span_of], spans.columns[span_of] + token] = ids + starts[span_of]
    return positions.masked_fill(~is_token, _PADDING_POSITION)


def extend_positions(last: Tensor, num: int) -> Tensor:
    """Returns the position ids of the next `num` text tokens after a prompt.

    Args:
        last: int64 [3, B], ids of the last prompt token (`position_ids[:, :, -1]` with padding on
            the left). That token must be text: after a clip, the next id is not its last id + 1.
        num: number of tokens.

    Returns:
        int64 [3, B, num].
    """
    steps = torch.arange(1, num + 1, device=last.device)
    return (last.amax(dim=0)[:, None] + steps).expand(3, -1, -1)


def _time_ids(grid_index: Tensor, second_per_grid_s: Tensor, tokens_per_second: float) -> Tensor:
    """Returns floor(grid_index * second_per_grid * tokens_per_second), robust to rounding errors.

    For example, step 3 of 2/3 s at 2 ids per second has the id 3 * 2/3 * 2 = 4. In floating point
    the product may be slightly less, and a plain floor would give 3. The few roundings between
    frame count and product lose less than 8 eps, which are added back. No true time is that close
    to the next integer without reaching it.
    """
    exact = grid_index * second_per_grid_s * tokens_per_second
    return torch.floor(exact * (1 + 8 * torch.finfo(exact.dtype).eps)).long()


def _find_spans(
    is_start: Tensor, is_video: Tensor, video_grid_thw: Tensor, spatial_merge: int
) -> _Spans:
    """Assigns the spans found in the prompts to the clips' grids; raises if they do not match."""
    rows, before = torch.nonzero(is_start[:, :-1] & is_video[:, 1:], as_tuple=True)
    num_clips = len(video_grid_thw)
    if len(rows) < num_clips or (num_clips == 0 and len(rows) > 0):
        raise ValueError(
            "video_grid_thw must have one row for each clip in the prompts: "
            f"got {num_clips} grids, {len(rows)} clips"
        )
    if bool((video_grid_thw < 1).any()) or bool((video_grid_thw[:, 1:] % spatial_merge).any()):
        raise ValueError(
            "video_grid_thw must be positive, height and width multiples of "
            f"spatial_merge={spatial_merge} patches: got {video_grid_thw.tolist()}"
        )
    merge = torch.tensor([1, spatial_merge, spatial_merge], device=video_grid_thw.device)
    grid = video_grid_thw // merge
    num_tokens = _run_lengths(is_video)[rows, before + 1]
    wanted = grid.prod(dim=1)
    clips = _clips_of_spans(num_tokens, wanted)
    own_grid = grid[clips]
    own_grid[:, 0] = num_tokens // own_grid[:, 1:].prod(dim=1)
    found = torch.zeros_like(wanted).index_add(0, clips, num_tokens)
    fits = (
        torch.equal(found, wanted)
        and torch.equal(own_grid.prod(dim=1), num_tokens)  # complete time steps
        and bool(((clips.diff() > 0) | (rows.diff() == 0)).all())  # each clip is in one prompt
        and int(is_video.sum()) == int(wanted.sum())
    )
    if not fits:
        raise ValueError(
            f"video tokens of the {num_clips} clips in the prompts must match their grids: "
            f"got {int(is_video.sum())} tokens, expected {wanted.tolist()}; spans have "
            f"{num_tokens.tolist()} tokens, time steps {grid[:, 1:].prod(dim=1).tolist()}"
        )
    return _Spans(rows=rows, columns=before + 1, clips=clips, grid=own_grid, num_tokens=num_tokens)


def _clips_of_spans(num_tokens: Tensor, wanted: Tensor) -> Tensor:
    """Returns the index of each span's clip, int64 [K].

    A span belongs to the clip in which it ends. Spans beyond all clips are assigned to the last.

    Args:
        num_tokens: [K], tokens of each span, in order.
        wanted: [clips], tokens of each clip, in order.
    """
    ends = torch.searchsorted(wanted.cumsum(dim=0), num_tokens.cumsum(dim=0))
    return ends.clamp(max=max(len(wanted) - 1, 0))


def _run_lengths(is_video: Tensor) -> Tensor:
    """Returns the length of the run of video tokens that starts at each position: int64 [B, P]."""
    width = is_video.shape[1]
    places = torch.arange(width, device=is_video.device)
    others = torch.where(is_video, width, places)
    next_other = others.flip(1).cummin(dim=1).values.flip(1) if width else others
    return next_other - places


def _tokens_of_spans(num_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns, for every video token of the batch, its span's index and its index in the span."""
    span_of = torch.repeat_interleave(num_tokens)
    first = num_tokens.cumsum(dim=0) - num_tokens
    return span_of, torch.arange(len(span_of), device=num_tokens.device) - first[span_of]


def _divmod(value: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    return value // by, value % by
