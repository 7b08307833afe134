"""Tests that irrelevant library warnings are silenced and all others are kept."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from tvg.training.quiet_logs import quiet_libraries


def test_deepspeed_keeps_its_other_warnings(caplog):
    quiet_libraries()
    logger = logging.getLogger("DeepSpeed")
    logger.warning("Setting accelerator to CPU. If you have GPU, we were unable to detect it.")
    logger.warning("Gradient overflow")
    said = [record.getMessage() for record in caplog.records if record.name == "DeepSpeed"]
    assert said == ["Gradient overflow"]


@pytest.mark.slow
def test_importing_deepspeed_without_a_gpu_prints_no_warning():
    code = "import tvg.training.quiet_logs as n; n.quiet_libraries(); import deepspeed"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "accelerator" not in done.stdout + done.stderr
