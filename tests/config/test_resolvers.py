"""Tests of the OmegaConf resolvers used in configs."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from tvg.config import register_resolvers, resolvers


@pytest.fixture(autouse=True)
def _registered():
    register_resolvers()
    register_resolvers()  # registering twice is no error


def resolved(**keys):
    return OmegaConf.to_container(OmegaConf.create(keys), resolve=True)


def test_mul_keeps_integers():
    assert resolved(a=3, b="${mul:${a},4}", c="${mul:${a},0.5}") == {"a": 3, "b": 12, "c": 1.5}
    assert isinstance(resolved(b="${mul:3,4}")["b"], int)


def test_basename_is_the_last_part_of_a_path():
    assert resolved(a="${basename:runs/some/name}")["a"] == "name"


def test_short_hash_depends_on_values_only():
    def hashed(settings, seed):
        return resolved(s=settings, seed=seed, h="${short_hash:${s},${seed}}")["h"]

    first = hashed({"a": 1, "b": [2, 3]}, 0)
    assert len(first) == 8
    assert first == hashed({"b": [2, 3], "a": 1}, 0)
    assert first != hashed({"a": 1, "b": [2, 4]}, 0)
    assert first != hashed({"a": 1, "b": [2, 3]}, 1)


def test_all_ranks_of_a_run_share_its_name(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    resolvers._new_run_name.cache_clear()
    monkeypatch.setenv("TVG_RUN_NAME", "of-another-run")
    name = resolved(a="${run_name:}")["a"]
    assert name != "of-another-run"
    assert resolved(a="${run_name:}")["a"] == name
    resolvers._new_run_name.cache_clear()  # as in the process of another rank
    monkeypatch.setenv("TVG_RUN_NAME", "of-rank-zero")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolved(a="${run_name:}")["a"] == "of-rank-zero"


SEVERAL = {
    "WORLD_SIZE=2": {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    "SLURM_STEP_NUM_TASKS=4": {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"},
    "trainer.num_nodes=2": {"NODE_RANK": "0"},
}
LAUNCHES = {
    "torchrun_exp-1": {**SEVERAL["WORLD_SIZE=2"], "TORCHELASTIC_RUN_ID": "exp 1"},
    "slurm_4711_0": {**SEVERAL["SLURM_STEP_NUM_TASKS=4"], "SLURM_JOB_ID": "4711"},
    "slurm_4711_2": {
        **SEVERAL["WORLD_SIZE=2"],  # torchrun in a Slurm job, without --rdzv-id
        "TORCHELASTIC_RUN_ID": "none",
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "2",
    },
}
GIVEN = (*SEVERAL.values(), *LAUNCHES.values())


@pytest.fixture
def environment(monkeypatch):
    """Returns a function that replaces the environment's launcher variables by given ones."""

    def use(variables):
        given = {
            name for variables in (*SEVERAL.values(), *LAUNCHES.values()) for name in variables
        }
        for name in {"TVG_RUN_NAME", *given}:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TVG_RUN_NAME", "")
        for name, text in variables.items():
            monkeypatch.setenv(name, text)
        resolvers._new_run_name.cache_clear()

    yield use
    resolvers._new_run_name.cache_clear()


@pytest.mark.parametrize("name", LAUNCHES)
def test_ranks_of_a_launch_share_its_id_as_name(environment, name):
    environment(LAUNCHES[name])
    assert OmegaConf.create({"name": "${run_name:}"}).name == name


@pytest.mark.parametrize("found", SEVERAL)
def test_ranks_without_a_launch_id_need_a_given_name(environment, found):
    environment(SEVERAL[found])
    cfg = OmegaConf.create({"name": "${run_name:}", "trainer": {"num_nodes": 2}})
    with pytest.raises(ValueError, match=f"name: a value is needed .*: {found} starts several"):
        _ = cfg.name


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"NODE_RANK": "0"},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "TVG_RUN_NAME": "given"},
    ],
)
def test_default_name_of_single_process_is_the_time(environment, variables):
    environment(variables)
    cfg = OmegaConf.create({"name": "${run_name:}", "trainer": {"num_nodes": 1}})
    name = cfg.name  # resolved first, because `_new_run_name` sets TVG_RUN_NAME
    clock = resolvers._new_run_name(resolvers._attempts[-1])  # not 1 if other tests increased it
    assert name == variables.get("TVG_RUN_NAME", clock)
