"""Rehearses `make bench-gpu` on a CPU, with a small shape."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = Path(__file__).parents[2] / "experiments" / "benchmarks" / "common"


def run(script, *words):
    done = subprocess.run(
        [sys.executable, str(COMMON / script), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_step_benchmark_has_a_row_for_each_precision_stage_and_method():
    small = ("--prompt-tokens=200", "--group-size=2", "--completion-tokens=3", "--rounds=1")
    rows = run("gpu.py", "--device=cpu", "--shapes=5m", *small)
    assert [row["precision"] for row in rows] == ["bf16"] * 6 + ["autocast"] * 6
    assert all(float(row["seconds"]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_benchmark_trains_saves_and_resumes(tmp_path):
    small = ("--steps=3", "--group-size=2", "--completion-tokens=3", "--frame-pixels=784")
    (row,) = run("gpu_runs.py", "--shapes=5m", "--cases=cpu", f"--folder={tmp_path}", *small)
    assert row["failure"] == "-"
    assert all(float(row[name]) > 0 for name in ("step_s", "sampling_s", "run_s", "resume_s"))
    assert list((tmp_path / "run_5m_cpu" / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_benchmark_reports_a_failing_case(tmp_path):
    (row,) = run("gpu_runs.py", "--shapes=5m", "--cases=zero2_float32", f"--folder={tmp_path}")
    assert row["failure"] != "-"
    assert row["step_s"] == "-"
