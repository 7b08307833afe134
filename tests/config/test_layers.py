"""Tests that core, rewards and objectives import only torch, the standard library and tvg."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tvg"
FILES = [
    file for room in ("core", "reward", "objective") for file in (PACKAGE / room).rglob("*.py")
]


def third_parties(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"torch", "tvg"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_file_imports_no_third_party_except_torch(file):
    assert third_parties(file) == set()


def test_third_party_import_is_detected(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import os\ndef f():\n    from numpy.linalg import norm\n")
    assert third_parties(file) == {"numpy"}
