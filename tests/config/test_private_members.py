"""Tests that each library's private members are used in one file, which has a test.

Members and modules are private if their name begins with an underscore. Modules of the libraries
in `PUBLIC` are also private if the library's documentation does not offer them to users.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "tvg"
MAY = {  # library -> file that may use private members, and the test of that file
    "hydra": ("config/hydra_internals.py", "config/test_hydra_internals.py"),
    "lightning": ("training/lightning_internals.py", "training/test_lightning_internals.py"),
    "mlflow": ("tracking/mlflow_internals.py", "callbacks/test_system_metrics.py"),
    "omegaconf": ("config/omegaconf_internals.py", "config/test_omegaconf_internals.py"),
    "torch": ("model/attention_kernels.py", "model/test_attention_kernels.py"),
    "transformers": ("model/attention_choice.py", "model/test_attention_choice.py"),
}
PUBLIC = {  # library -> the modules that its documentation offers
    "hydra": {
        "hydra",
        "hydra.core.hydra_config",  # HydraConfig
        "hydra.core.utils",  # JobReturn, an argument of callbacks
        "hydra.errors",
        "hydra.experimental.callback",
        "hydra.utils",
    },
    "lightning": {
        "lightning.fabric",
        "lightning.fabric.strategies",
        "lightning.pytorch",
        "lightning.pytorch.callbacks",
        "lightning.pytorch.loggers",
        "lightning.pytorch.plugins.io",
        "lightning.pytorch.strategies",
        "lightning.pytorch.utilities",
        "lightning.pytorch.utilities.deepspeed",  # the documented converter of checkpoints
        "lightning.pytorch.utilities.types",
    },
    "mlflow": {"mlflow", "mlflow.entities", "mlflow.exceptions"},
    "omegaconf": {"omegaconf", "omegaconf.errors"},
}
OF_PYTHON = {"_replace", "_asdict", "_exit"}  # named tuples, os
BY_NAME = ("getattr", "setattr", "hasattr", "delattr")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def modules(node: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Yields (module, imported names) of an import statement."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, []) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        yield node.module or "", [alias.name for alias in node.names]


def is_offered(module: str) -> bool:
    library = module.partition(".")[0]
    return library not in PUBLIC or module in PUBLIC[library]


def private_members(file: Path) -> list[str]:
    """Returns the private members and modules that a file uses."""
    found, nodes = [], list(ast.walk(ast.parse(file.read_text())))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}  # of another instance
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not is_own and node.attr not in OF_PYTHON | own:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME:
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                found.append(ast.unparse(node))
        for module, names in modules(node):
            if not is_offered(module):
                found.append(module)
            found += [part for part in (*module.split("."), *names) if is_private(part)]
    return found


def test_private_members_are_used_in_one_file_per_library():
    found = {
        str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if private_members(file)
    }
    assert found == {file for file, _ in MAY.values()}


@pytest.mark.parametrize("library", MAY)
def test_file_with_private_members_has_a_test(library):
    _, test = MAY[library]
    assert (PROJECT / "tests" / test).is_file()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from torch._C import x", ["_C"]),
        ("from torch import _C", ["_C"]),
        ("import torch._dynamo.config", ["_dynamo"]),
        ("trainer.loop._hidden.y", ["trainer.loop._hidden"]),
        ("getattr(trainer, '_results', None)", ["getattr(trainer, '_results', None)"]),
        ("from tvg.core.x import _mine", ["_mine"]),
        ("from hydra.core.global_hydra import GlobalHydra", ["hydra.core.global_hydra"]),
        ("import lightning.pytorch.loops", ["lightning.pytorch.loops"]),
        ("from mlflow.utils.mlflow_tags import X", ["mlflow.utils.mlflow_tags"]),
        ("self._mine\nrow._replace()\nfrom __future__ import annotations", []),
        ("import mlflow\nfrom hydra.utils import instantiate", []),
    ],
)
def test_private_members_are_detected(tmp_path, line, found):
    file = tmp_path / "x.py"
    file.write_text(line)
    assert private_members(file) == found
