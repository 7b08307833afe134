"""Tests of position ids with hand-computed cases and with a token-by-token definition."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tvg.core.positions import extend_positions, mrope_position_ids

TEXT, START, VIDEO, END, PAD = 5, 90, 91, 92, 0


def clip(num_tokens: int) -> list[int]:
    return [START] + [VIDEO] * num_tokens + [END]


def positions(
    rows: list[list[int]],
    grids: list[list[int]],
    second_per_grid_s: list[float],
    *,
    spatial_merge: int = 2,
    tokens_per_second: float = 4,
    pad_left: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        padding = [0] * (longest - len(row))
        ids.append(padding + row if pad_left else row + padding)
        mask.append(padding + [1] * len(row) if pad_left else [1] * len(row) + padding)
    return mrope_position_ids(
        torch.tensor(ids),
        torch.tensor(mask),
        video_grid_thw=torch.tensor(grids, dtype=torch.int64).view(-1, 3),
        second_per_grid_s=torch.tensor(second_per_grid_s, dtype=dtype),
        vision_start_id=START,
        video_token_id=VIDEO,
        spatial_merge=spatial_merge,
        tokens_per_second=tokens_per_second,
    )


def test_positions_of_a_clip_of_sixteen_seconds() -> None:
    # 16 grid steps of 1 s with one token each, 4 ids per second, 25 tokens in total.
    row = [TEXT, START] + [VIDEO] * 16 + [END] + [TEXT] * 6
    time, height, width = positions([row], [[16, 2, 2]], [1.0])[:, 0].tolist()
    assert time == [0, 1, *range(2, 63, 4), *range(63, 70)]
    assert height == width == [0, 1] + [2] * 16 + list(range(63, 70))


def test_positions_of_text_clip_and_text() -> None:
    # Two grid steps of 2 x 3 tokens. A step is 1 s (2 frames per second), so 4 ids.
    row = [TEXT] * 3 + clip(12) + [TEXT] * 2
    time, height, width = positions([row], [[2, 4, 6]], [1.0])[:, 0].tolist()
    # Text 0-2, vision start 3, clip from 4; the largest id of the clip is 4 + 4 = 8.
    assert time == [0, 1, 2, 3] + [4] * 6 + [8] * 6 + [9, 10, 11]
    assert height == [0, 1, 2, 3] + [4, 4, 4, 5, 5, 5] * 2 + [9, 10, 11]
    assert width == [0, 1, 2, 3] + [4, 5, 6] * 4 + [9, 10, 11]


def test_text_continues_after_the_largest_id_of_all_axes() -> None:
    # One step, 2 rows, 5 columns: the largest id is 1 + 4 = 5, on the width axis.
    time, height, width = positions([clip(10)], [[1, 4, 10]], [1.0])[:, 0].tolist()
    assert time == [0] + [1] * 10 + [6]
    assert height == [0] + [1] * 5 + [2] * 5 + [6]
    assert width == [0] + [1, 2, 3, 4, 5] * 2 + [6]
    # The transposed grid: the largest id is 5 again, on the height axis.
    assert positions([clip(10)], [[1, 10, 4]], [1.0])[:, 0, -1].tolist() == [6] * 3


@pytest.mark.parametrize(
    ("second_per_grid_s", "expected"),
    [
        (2 / 1, [0, 8, 16, 24, 32, 40, 48]),
        (2 / 2, [0, 4, 8, 12, 16, 20, 24]),
        (2 / 4, [0, 2, 4, 6, 8, 10, 12]),
        (2 / 3, [0, 2, 5, 8, 10, 13, 16]),  # 2.67 ids per step; every third is an integer
        (2 / (9.53 / 5), [0, 4, 8, 12, 16, 20, 25]),  # 4.1973 ids per step
        (9.53 / 5, [0, 7, 15, 22, 30, 38, 45]),  # 7.624 ids per step
        (2 / 30, [0, 0, 0, 0, 1, 1, 1]),  # 0.2667 ids per step: neighbours share an id
    ],
)
def test_temporal_ids_follow_the_sampled_rate(
    second_per_grid_s: float, expected: list[int]
) -> None:
    time = positions([clip(7)], [[7, 2, 2]], [second_per_grid_s])[0, 0]
    assert time.tolist() == [0, *(1 + step for step in expected), 1 + expected[-1] + 1]


@pytest.mark.parametrize("num_frames", [180, 300, 768])
@pytest.mark.parametrize("frames_per_second", [1, 2, 3, 6, 7, 24, 25, 30, 41, 47, 49, 55])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_temporal_ids_are_exact_despite_rounding(
    num_frames: int, frames_per_second: int, dtype: torch.dtype
) -> None:
    # A plain floor is one too small at 49 fps in float64, and at 41, 47 and 55 fps in float32.
    sampled_fps = num_frames / (10 * num_frames) * (10 * frames_per_second)
    num_steps = num_frames // 2
    time = positions([clip(num_steps)], [[num_steps, 2, 2]], [2 / sampled_fps], dtype=dtype)[0, 0]
    exact = [1 + step * 2 * 4 // frames_per_second for step in range(num_steps)]
    assert time[1:-1].tolist() == exact


def test_positions_of_two_clips_in_one_prompt() -> None:
    row = [TEXT, *clip(2), TEXT, *clip(3), TEXT]
    time, height, width = positions([row], [[2, 2, 2], [3, 2, 2]], [1.0, 0.5])[:, 0].tolist()
    # Clip 1: ids 2, 6. Text: 7 (end), 8, 9 (start). Clip 2: 10, 12, 14. Text: 15, 16.
    assert time == [0, 1, 2, 6, 7, 8, 9, 10, 12, 14, 15, 16]
    assert height == width == [0, 1, 2, 2, 7, 8, 9, 10, 10, 10, 15, 16]


def test_padding_changes_no_positions_and_gets_id_one() -> None:
    rows = [[TEXT] * 2 + clip(4) + [TEXT], clip(2), [TEXT] * 3]
    grids, seconds = [[4, 2, 2], [2, 2, 2]], [1.0, 2.0]
    padded = positions(rows, grids, seconds)
    assert padded.dtype == torch.int64
    assert padded.shape == (3, 3, 9)
    alone = [
        positions(rows[:1], grids[:1], seconds[:1]),
        positions(rows[1:2], grids[1:], seconds[1:]),
        positions(rows[2:], [], []),
    ]
    on_the_right = positions(rows, grids, seconds, pad_left=False)
    for n, (row, one) in enumerate(zip(rows, alone, strict=True)):
        assert torch.equal(padded[:, n, 9 - len(row) :], one[:, 0])
        assert torch.equal(on_the_right[:, n, : len(row)], one[:, 0])
        assert padded[:, n, : 9 - len(row)].eq(1).all()
    assert alone[2][0].tolist() == [[0, 1, 2]]


def test_masked_vision_tokens_are_padding() -> None:
    ids = torch.tensor([[START, VIDEO, START, VIDEO, VIDEO, TEXT]])
    found = mrope_position_ids(
        ids,
        torch.tensor([[0, 0, 1, 1, 1, 1]]),
        video_grid_thw=torch.tensor([[2, 2, 2]]),
        second_per_grid_s=torch.tensor([1.0], dtype=torch.float64),
        vision_start_id=START,
        video_token_id=VIDEO,
        spatial_merge=2,
        tokens_per_second=4,
    )
    assert found[0].tolist() == [[1, 1, 0, 1, 5, 6]]


def test_vision_tokens_without_start_token_are_no_clip() -> None:
    with pytest.raises(ValueError, match="got 1 grids, 0 clips"):
        mrope_position_ids(
            torch.tensor([[START, VIDEO, TEXT]]),
            torch.tensor([[0, 1, 1]]),
            video_grid_thw=torch.tensor([[1, 2, 2]]),
            second_per_grid_s=torch.tensor([1.0], dtype=torch.float64),
            vision_start_id=START,
            video_token_id=VIDEO,
            spatial_merge=2,
            tokens_per_second=4,
        )


def test_positions_without_spatial_merge() -> None:
    # No spatial merge. 2 ids per second and 2 s per step: 4 ids per step.
    time, height, width = positions(
        [clip(4)], [[2, 1, 2]], [2.0], spatial_merge=1, tokens_per_second=2
    )[:, 0].tolist()
    assert time == [0, 1, 1, 5, 5, 6]
    assert height == [0, 1, 1, 1, 1, 6]
    assert width == [0, 1, 2, 1, 2, 6]


def test_wrong_frame_rates_change_the_positions() -> None:
    rows = [[TEXT, *clip(8), TEXT], [TEXT, *clip(8), TEXT]]
    grids = [[8, 2, 2]] * 2
    right = positions(rows, grids, [1.0, 2 / 1.3])
    dropped = positions(rows, grids, [1.0, 1.0])  # as if all clips were sampled at 2 fps
    permuted = positions(rows, grids, [2 / 1.3, 1.0])
    assert torch.equal(right[:, 0], dropped[:, 0])
    assert not torch.equal(right[:, 1], dropped[:, 1])
    assert not torch.equal(right[:, 0], permuted[:, 0])
    assert torch.equal(right[:, 0], permuted[:, 1])


def walked(row: list[int], grids: list[list[int]], seconds: list[float]) -> list[list[int]]:
    """Computes positions from their definition, token by token."""
    ids: list[list[int]] = []
    largest, place, clips = -1, 0, iter(zip(grids, seconds, strict=True))
    while place < len(row):
        first = largest + 1
        if row[place] != VIDEO:
            block = [[first] * 3]
        else:
            (steps, height, width), second = next(clips)
            block = [
                [first + int(t * second * 4 + 1e-9), first + h, first + w]
                for t in range(steps)
                for h in range(height // 2)
                for w in range(width // 2)
            ]
        ids += block
        largest = max(map(max, block))
        place += len(block)
    return [list(axis) for axis in zip(*ids, strict=True)]


def test_positions_of_one_span_per_step() -> None:
    # A span is a run of video tokens. This clip has three, one for each step of 1 x 2 tokens. Each
    # step is half a second long, and its positions continue after the text of its time.
    row = [TEXT, TEXT, *clip(2), TEXT, TEXT, *clip(2), TEXT, *clip(2), TEXT]
    time, height, width = positions([row], [[3, 2, 4]], [0.5])[:, 0].tolist()
    # Start: 2. Tokens: 3 (width 3, 4). End: 5. Text: 6, 7. Start: 8. Tokens: 9. End: 11, ...
    assert time == [0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 9, 11, 12, 13, 14, 14, 16, 17]
    assert height == time
    assert width == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]


def test_time_restarts_in_each_span() -> None:
    # Four steps of one token, 1 s (4 ids) apart, split as 3 + 1. Each span starts at 0 s.
    row = [*clip(3), TEXT, *clip(1), TEXT]
    time, height, _ = positions([row], [[4, 2, 2]], [1.0])[:, 0].tolist()
    assert time == [0, 1, 5, 9, 10, 11, 12, 13, 14, 15]
    assert height == [0, 1, 1, 1, 10, 11, 12, 13, 14, 15]


def test_split_and_complete_clips_in_one_batch() -> None:
    split = [TEXT, *clip(2), *clip(4), TEXT]  # 3 steps of 2 tokens, split as 1 + 2
    whole = [TEXT, *clip(6), TEXT, *clip(2), TEXT]
    grids = [[3, 2, 4], [3, 2, 4], [1, 2, 4]]
    both = positions([split, whole], grids, [1.0, 1.0, 1.0])
    alone = positions([split], grids[:1], [1.0])
    assert torch.equal(both[:, 0, -len(split) :], alone[:, 0])
    assert torch.equal(both[:, 1], positions([whole], grids[1:], [1.0, 1.0])[:, 0])
    # Equal to separate clips.
    cut = positions([split], [[1, 2, 4], [2, 2, 4]], [1.0, 1.0])
    assert torch.equal(alone, cut)


@pytest.mark.parametrize(
    ("rows", "grids"),
    [
        ([[*clip(3), *clip(5)]], [[4, 2, 4]]),  # spans of 3 and 5 tokens, but 2 tokens per step
        ([[*clip(2), *clip(4)]], [[2, 2, 2], [4, 2, 2], [1, 2, 2]]),  # more clips than spans
        # The second span has tokens of two clips.
        ([[*clip(2), *clip(2), *clip(2)]], [[3, 2, 2], [3, 2, 2]]),
        ([[*clip(2), *clip(2)]], [[3, 2, 2]]),  # one step too many
        ([[*clip(2)], [*clip(2)]], [[4, 2, 2]]),  # one clip in two prompts
        ([[*clip(2), TEXT, VIDEO, VIDEO]], [[4, 2, 2]]),  # tokens without a start token
    ],
)
def test_spans_that_do_not_match_grids_are_refused(
    rows: list[list[int]], grids: list[list[int]]
) -> None:
    with pytest.raises(ValueError, match=r"must match their grids|one row for each clip"):
        positions(rows, grids, [1.0] * len(grids))


def test_random_batch_equals_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    rows, grids_of, seconds_of = [], [], []
    all_grids, all_seconds = [], []
    for _ in range(200):
        num_clips = draw(0, 4)
        grids = [[draw(1, 9), 2 * draw(1, 5), 2 * draw(1, 5)] for _ in range(num_clips)]
        seconds = [2 * draw(1, 100) / draw(20, 300) for _ in range(num_clips)]
        row = [TEXT] * draw(0, 5)
        for t, h, w in grids:
            row += clip(t * h * w // 4) + [TEXT] * draw(0, 5)
        rows.append([*row, TEXT])
        grids_of.append(grids)
        seconds_of.append(seconds)
        all_grids += grids
        all_seconds += seconds
    found = positions(rows, all_grids, all_seconds)
    for n, row in enumerate(rows):
        assert found[:, n, -len(row) :].tolist() == walked(row, grids_of[n], seconds_of[n])


def test_completions_continue_after_the_prompt() -> None:
    prompt = positions([[TEXT, *clip(2), TEXT], [TEXT]], [[2, 2, 2]], [1.0])
    further = extend_positions(prompt[:, :, -1], 3)
    assert further.shape == (3, 2, 3)
    assert further[:, 0].tolist() == [[9, 10, 11]] * 3
    assert further[:, 1].tolist() == [[1, 2, 3]] * 3
    # Equal to the positions of a prompt that contains the completion.
    whole = positions([[TEXT, *clip(2), TEXT, TEXT, TEXT, TEXT]], [[2, 2, 2]], [1.0])
    assert torch.equal(further[:, 0], whole[:, 0, -3:])
    assert extend_positions(prompt[:, :, -1], 0).shape == (3, 2, 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"second_per_grid_s": []}, "second_per_grid_s"),
        ({"second_per_grid_s": [0.0]}, "must be positive"),
        ({"second_per_grid_s": [float("nan")]}, "must be positive"),
        ({"dtype": torch.bfloat16}, "float64"),
        ({"grids": [[4, 2, 2]] * 2, "second_per_grid_s": [1.0] * 2}, "got 2 grids, 1 clips"),
        ({"grids": [], "second_per_grid_s": []}, "got 0 grids, 1 clips"),
        ({"grids": [[5, 2, 2]]}, "got 4 tokens, expected \\[5\\]"),
        ({"grids": [[3, 2, 2]]}, "got 4 tokens, expected \\[3\\]"),
        ({"grids": [[40, 2, 2]]}, "got 4 tokens"),
        ({"grids": [[4, 3, 2]]}, "spatial_merge=2"),
        ({"grids": [[0, 2, 2]]}, "must be positive"),
        ({"rows": [[TEXT] + [VIDEO] * 4]}, "got 1 grids, 0 clips"),
        ({"rows": [[*clip(4), VIDEO]]}, "got 5 tokens"),
        ({"rows": [[START, VIDEO, VIDEO, TEXT, VIDEO, VIDEO]]}, "must match their grids"),
    ],
)
def test_invalid_inputs_are_named(change: dict[str, Any], named: str) -> None:
    right: dict[str, Any] = {
        "rows": [clip(4)],
        "grids": [[4, 2, 2]],
        "second_per_grid_s": [1.0],
    }
    positions(**right)
    with pytest.raises(ValueError, match=named):
        positions(**(right | change))
