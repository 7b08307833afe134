"""Tests kills and signals at a few moments; experiments/faults tests many moments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "faults" / "faults.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("variant", ["grpo", "filtering"])
def test_killed_runs_equal_the_uninterrupted_run(tmp_path, variant):
    words = ["--kills", "1", "--signals", "1", "--random", "2", "--variants", variant]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "6 of 6 runs equal the undisturbed run" in done.stdout
