"""Tests of the time at which a job has to stop."""

import time

import pytest

from tvg.core.deadline import SLURM_END, Deadline, deadline_problems, make_deadline


def test_the_longest_part_of_the_work_is_kept():
    clock = [0.0]
    deadline = Deadline(100.0, margin_s=5.0, clock=lambda: clock[0])
    seen = []
    for clock[0] in (0.0, 10.0, 50.0, 52.0, 55.0):
        seen.append(deadline.is_near())
    # 50 + 40 + 5 < 100, and 55 + 40 + 5 = 100
    assert seen == [False, False, False, False, True]


@pytest.mark.parametrize("environment", [{}, {SLURM_END: ""}, {SLURM_END: "Unknown"}])
def test_auto_without_slurm_is_no_deadline(environment):
    assert make_deadline("auto", margin_s=1.0, environment=environment) is None


def test_auto_is_the_end_of_the_slurm_job():
    found = make_deadline("auto", margin_s=7.0, environment={SLURM_END: "1800000000"})
    assert (found.end_s, found.margin_s) == (1_800_000_000.0, 7.0)
    assert make_deadline(None, margin_s=7.0, environment={SLURM_END: "1800000000"}) is None


def test_duration_counts_from_now():
    found = make_deadline("1:02:03:04", margin_s=0.0, environment={})
    assert found.end_s - time.time() == pytest.approx(((24 + 2) * 60 + 3) * 60 + 4, abs=60)


@pytest.mark.parametrize("deadline", [None, "auto", "00:11:50:00"])
def test_valid_deadline_has_no_problem(deadline):
    assert deadline_problems(deadline, 0) == []


@pytest.mark.parametrize("deadline", ["11:50:00", "soon", 3600, True, "00:11:50:00 "])
def test_invalid_deadline_is_named(deadline):
    (problem,) = deadline_problems(deadline, 120)
    assert problem.startswith("train.deadline: expected null, auto, or a time")
    assert problem.endswith(f"got {deadline!r}")


@pytest.mark.parametrize("margin_s", [-1, "a minute", None, True])
def test_invalid_margin_is_named(margin_s):
    (problem,) = deadline_problems(None, margin_s)
    assert problem == f"train.deadline_margin_s: expected seconds >= 0, got {margin_s!r}"
