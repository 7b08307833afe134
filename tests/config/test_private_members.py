"""Private members of a dependency are used in one file per library, guarded by its own test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tvg"
MAY = {  # file -> library; the tests of these files fail where such a member changes
    "config/compose.py": "Hydra",
    "config/nodes.py": "OmegaConf",
    "model/attention_choice.py": "transformers",
    "model/attention_kernels.py": "torch",
    "training/lightning_internals.py": "Lightning",
}
PUBLIC = {"_replace", "_asdict", "_exit"}  # named tuples, os


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_members(file: Path) -> list[str]:
    found, nodes = [], list(ast.walk(ast.parse(file.read_text())))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}  # another instance's
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not is_own and node.attr not in PUBLIC | own:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("tvg"):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [part for part in parts if is_private(part)]
    return found


def test_private_members_are_used_in_one_file_per_library():
    found = {
        name: private_members(file)
        for file in sorted(PACKAGE.rglob("*.py"))
        if (name := str(file.relative_to(PACKAGE))) not in MAY
    }
    assert {name: members for name, members in found.items() if members} == {}


@pytest.mark.parametrize("name", MAY)
def test_no_exception_is_left_over(name):
    assert private_members(PACKAGE / name)


def test_a_private_member_is_seen(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("from torch._C import x\nself._mine\ntrainer.loop._hidden.y\nrow._replace()\n")
    assert private_members(file) == ["_C", "trainer.loop._hidden"]
