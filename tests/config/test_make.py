"""Tests of the Makefile and the lock file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TARGETS = ["setup", "demo", "test", "test-all", "lint", "format", "bench", "dashboard", "clean"]

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*words: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *words], cwd=cwd, capture_output=True, text=True, timeout=60)


@needs_make
def test_make_without_target_lists_the_targets():
    done = make()
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert set(TARGETS) <= set(listed)


@needs_make
def test_setup_without_python_reports_it(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    done = make("setup", "PYTHON=/no/such/python3", cwd=tmp_path)
    assert done.returncode != 0
    assert "no Python >= 3.11 found at PYTHON=/no/such/python3" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_lock_file_contains_no_url():
    assert "://" not in (PROJECT / "requirements.lock").read_text()
