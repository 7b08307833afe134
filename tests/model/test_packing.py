"""Tests of the places of tokens in a packed row with layouts written by hand."""

import pytest
import torch

from tvg.model.packing import pack


def masks(prompts: list[int], completions: list[int], *, width: int | None = None):
    """Returns masks of prompts padded on the left and completions padded on the right."""
    wide = max(prompts)
    long = max(completions) if width is None else width
    prompt_mask = torch.tensor([[0] * (wide - n) + [1] * n for n in prompts])
    completion_mask = (torch.arange(long) < torch.tensor(completions)[:, None]).long()
    return prompt_mask, completion_mask


def layout(row):
    """Returns the fields of a row as plain lists."""
    return {
        "num_tokens": row.num_tokens,
        "prompt_places": row.prompt_places.tolist(),
        "completion_places": row.completion_places.tolist(),
        "needed": row.needed.tolist(),
        "sources": row.sources.tolist(),
    }


def test_one_prompt_with_ragged_completions():
    # p p p a a b: the tokens of a are predicted at places 2 and 3, the token of b at place 2.
    row = pack(*masks([3], [2, 1]), group_size=2)
    assert layout(row) == {
        "num_tokens": 6,
        "prompt_places": [0, 1, 2],
        "completion_places": [3, 4, 5],
        "needed": [2, 3],
        "sources": [0, 1, 0],
    }
    (group,) = row.groups
    assert group.prompts.tolist() == [[0, 1, 2]]
    assert group.is_real.tolist() == [[[True, True], [True, False]]]
    assert group.completions[group.is_real].tolist() == [3, 4, 5]
    assert bool((group.completions < 6).all())


def test_two_prompts_of_unequal_length_and_an_empty_completion():
    # p p a a | q q q c d d d: the second completion of p is empty.
    row = pack(*masks([2, 3], [2, 0, 1, 3]), group_size=2)
    assert layout(row) == {
        "num_tokens": 11,
        "prompt_places": [0, 1, 4, 5, 6],
        "completion_places": [2, 3, 7, 8, 9, 10],
        "needed": [1, 2, 6, 8, 9],
        "sources": [0, 1, 2, 2, 3, 4],
    }
    short, long = row.groups
    assert short.prompts.tolist() == [[0, 1]]
    assert short.is_real.tolist() == [[[True, True], [False, False]]]
    assert short.completions[short.is_real].tolist() == [2, 3]
    assert long.prompts.tolist() == [[4, 5, 6]]
    assert long.is_real.tolist() == [[[True, False, False], [True, True, True]]]
    assert long.completions[long.is_real].tolist() == [7, 8, 9, 10]


def test_prompts_of_equal_length_form_one_group():
    # p p a | q b b | r r c: the first and the third prompt, of length 2, form one group.
    # The completions of a group are padded to the group's longest, not the batch's.
    row = pack(*masks([2, 1, 2], [1, 2, 1]), group_size=1)
    assert layout(row) == {
        "num_tokens": 9,
        "prompt_places": [0, 1, 3, 6, 7],
        "completion_places": [2, 4, 5, 8],
        "needed": [1, 3, 4, 7],
        "sources": [0, 1, 2, 3],
    }
    one, two = row.groups
    assert one.prompts.tolist() == [[3]]
    assert one.completions.tolist() == [[[4, 5]]]
    assert two.prompts.tolist() == [[0, 1], [6, 7]]
    assert two.completions.tolist() == [[[2]], [[8]]]
    assert two.is_real.all()


@pytest.mark.parametrize("width", [0, 3])
def test_prompts_without_completions_need_their_last_token(width):
    row = pack(*masks([2, 3], [0, 0, 0, 0], width=width), group_size=2)
    assert layout(row) == {
        "num_tokens": 5,
        "prompt_places": [0, 1, 2, 3, 4],
        "completion_places": [],
        "needed": [1, 4],
        "sources": [],
    }
    assert [group.completions.shape[-1] for group in row.groups] == [0, 0]


def test_the_prompt_end_is_needed_for_empty_completions():
    row = pack(*masks([1, 1], [0, 2]), group_size=1)
    assert row.needed.tolist() == [0, 1, 2]
    assert row.sources.tolist() == [1, 2]


def test_every_token_has_exactly_one_place():
    torch.manual_seed(0)
    for group_size in (1, 3):
        prompts = torch.randint(1, 6, (4,)).tolist()
        completions = torch.randint(0, 5, (4 * group_size,)).tolist()
        row = pack(*masks(prompts, completions), group_size=group_size)
        assert row.num_tokens == sum(prompts) + sum(completions)
        places = torch.cat([row.prompt_places, row.completion_places])
        assert places.sort().values.tolist() == list(range(row.num_tokens))
        of_groups = [
            place
            for group in row.groups
            for place in (*group.prompts.flatten(), *group.completions[group.is_real])
        ]
        assert sorted(map(int, of_groups)) == list(range(row.num_tokens))


def test_a_mask_of_another_group_size_is_refused():
    with pytest.raises(AssertionError):
        pack(*masks([2, 2], [1, 1, 1]), group_size=2)
