"""Tests of the ranks that the environment describes."""

from __future__ import annotations

import pytest

from tvg.core.launched import is_first_of_node, is_first_rank, started_processes


@pytest.fixture
def environment(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)

    def use(variables: dict[str, str]) -> None:
        for name, text in variables.items():
            monkeypatch.setenv(name, text)

    return use


@pytest.mark.parametrize(
    ("variables", "is_first", "is_first_here"),
    [
        ({}, True, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False, True),
        ({"RANK": "2", "LOCAL_RANK": "2"}, False, False),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True, True),
        ({"SLURM_PROCID": "8", "SLURM_LOCALID": "0"}, False, True),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, False, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False, False),  # by Lightning, in a SLURM shell
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False, True),
        ({"NODE_RANK": "1"}, False, True),  # started by hand; Lightning starts the others
    ],
)
def test_ranks_of_each_launcher(environment, variables, is_first, is_first_here):
    environment(variables)
    assert is_first_rank() == is_first
    assert is_first_of_node() == is_first_here


def test_single_processes_are_no_launch(environment, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    environment({"RANK": "0", "WORLD_SIZE": "1", "SLURM_PROCID": "0"})
    assert started_processes() == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert started_processes() == "WORLD_SIZE=2"
