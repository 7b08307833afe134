"""Tests of splitting a batch by its number of tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvg.data.split_batches import runs_within


@pytest.mark.parametrize(
    ("lengths", "budget", "runs"),
    [
        ([3, 3, 3, 3], 6, [2, 2]),
        ([3, 3, 3, 3], 8, [2, 2]),
        ([3, 3, 3, 3], 9, [3, 1]),
        ([2, 4, 2, 2], 8, [2, 2]),  # padding counts: 2 * 4, not 2 + 4
        ([9, 1, 1], 4, [1, 2]),  # too long for the budget: alone
        ([1, 9, 1], 4, [1, 1, 1]),
        ([0, 9, 0, 0, 1], 9, [4, 1]),  # items of length 0 need no room
        ([0, 0], 1, [2]),
        ([], 1, []),
    ],
)
def test_runs_are_as_long_as_the_budget_allows(lengths, budget, runs):
    assert [len(run) for run in runs_within(lengths, lengths, budget)] == runs


@given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 60))
def test_runs_keep_the_order_and_the_budget(lengths, budget):
    items = list(enumerate(lengths))
    runs = runs_within(items, lengths, budget)
    assert [item for run in runs for item in run] == items
    for run in runs:
        real = [length for _, length in run if length]
        assert len(real) * max(real, default=0) <= budget or len(real) == 1
