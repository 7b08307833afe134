"""Tests of suggested settings: each is verified by the estimate of its own config."""

from pathlib import Path

import pytest
from helpers.sizes import write_config

from tvg.config import compose
from tvg.config.check import find_problems
from tvg.estimate.changes import all_changes
from tvg.estimate.from_config import make_job
from tvg.estimate.lines import host_total, total
from tvg.estimate.memory import estimate
from tvg.estimate.remedies import cheapest_that_fits
from tvg.estimate.text import USABLE

GIB = 2**30
CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Returns the command of full-parameter GRPO with a reference on one GPU, with 7B weights."""
    folder = write_config(tmp_path_factory.mktemp("sizes") / "7b", "7b")
    run = ["model=qwen2_5_vl_7b", f"model.path={folder}", "data=charades", "run_dir=x", "name=x"]
    return [*run, "trainer=gpu", "trainer.devices=1", "objective.loss.kl_coef=0.04"]


def job_of(words):
    return make_job(compose("train", words).cfg, clip_s=None)


def sizes(job):
    lines = estimate(job)
    gpu = {line.name: line.gpu for line in lines}
    return gpu, {line.name: line.host for line in lines}


def option_exists(words):
    choice = next((w for w in words.split() if w.startswith("strategy=")), None)
    return choice is None or (CONF / "strategy" / f"{choice[9:]}.yaml").exists()


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["trainer.devices=2", "trainer.num_nodes=2"],
        ["model.gradient_checkpointing=false", "objective.micro_batch_size=2"],
        ["rollout=hf", "policy.forward=repeated"],
        ["trainer.devices=4", "strategy=deepspeed_zero1"],
    ],
)
def test_every_change_equals_the_estimate_of_its_config(words, more):
    job = job_of([*words, *more])
    changes = [change for change in all_changes(job) if option_exists(change.words)]
    assert len(changes) >= 3
    for change in changes:
        composed = job_of([*words, *more, *change.words.split()])
        assert sizes(change.job) == sizes(composed), change.words


@pytest.mark.parametrize(
    ("memory_gib", "expected"),
    [
        (79, {"model.dtype=bfloat16", "objective/optimizer=adamw_8bit_stochastic"}),
        (
            139,
            {
                "objective.reference_dtype=bfloat16",
                "objective.reference_offload=true",
            },
        ),
    ],
    ids=["80_gb", "141_gb"],
)
def test_setting_for_7b_with_reference_on_one_gpu(words, monkeypatch, memory_gib, expected):
    job = job_of(words)
    assert total(estimate(job)) > 139 * GIB
    found = cheapest_that_fits(job, USABLE * memory_gib * GIB)
    chosen = " ".join(found.words).split()
    assert set(chosen) == expected
    composition = compose("train", [*words, *chosen])
    needed = total(estimate(make_job(composition.cfg, clip_s=None)))
    assert needed == found.gpu <= USABLE * memory_gib * GIB
    monkeypatch.setattr("tvg.core.limits.find_spec", lambda name: object())  # torchao
    problems = find_problems(composition)
    assert [p for p in problems if "torchao" not in p] == []


def test_masters_on_the_host_are_suggested_for_a_small_gpu(words):
    found = cheapest_that_fits(job_of(words), USABLE * 40 * GIB)
    assert found.words[0] == "strategy=deepspeed_zero2_offload objective/optimizer=adamw_cpu"
    chosen = " ".join(found.words).split()
    composition = compose("train", [*words, *chosen])
    assert find_problems(composition) == []
    # States (8), masters (4), gradients (2 + 4) and new weights (2) of each trained weight, and an
    # offloaded reference of 2 bytes.
    trained = found.job.params.trained
    assert found.host == host_total(estimate(make_job(composition.cfg, clip_s=None)))
    assert found.host == trained * (8 + 4 + 2 + 4 + 2 + 2)


def test_nothing_is_suggested_if_nothing_fits(words):
    assert cheapest_that_fits(job_of(words), 5 * GIB) is None


def test_setting_that_fits_is_not_changed(words):
    assert cheapest_that_fits(job_of(words), 1000 * GIB).words == ()
