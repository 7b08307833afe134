"""Tests that only `tvg.model.families` depends on families; other models are refused."""

from __future__ import annotations

import ast
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.tiny_policy import make_checkpoint

from tvg.model.families import FAMILIES, family_of
from tvg.model.vision import trunk_fingerprint

PACKAGE = Path(__file__).parents[2] / "tvg"
INSIDE = PACKAGE / "model" / "families"
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if not file.is_relative_to(INSIDE)]
# One word that names a family or its class: an identifier, a part of a module, a full string.
FAMILY_WORD = re.compile(r"\w*(qwen|internvl)\w*", re.IGNORECASE)
# Module names of some families' models, alone or in a tensor's name.
MODULE = re.compile(r"([\w.]*\.)?(visual|vision_tower|multi_modal_projector)(\.[\w.]*)?")
CHOOSERS = ("get", "startswith", "endswith", "pop")  # methods that select by a string
ALLOWED = ("c.__name__ in kinds",)  # compares exception classes


def family_words(node: ast.AST) -> Iterator[str]:
    """Yields the words of a node that may name a family or its model type."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.alias):
        yield from node.name.split(".")
    elif isinstance(node, ast.ImportFrom):
        yield from (node.module or "").split(".")


def is_family_word(word: str) -> bool:
    return word == "model_type" or any(rule.fullmatch(word) for rule in (FAMILY_WORD, MODULE))


def outside_texts(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the node and its descendants, except the parts of f-strings."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.JoinedStr):
            yield from outside_texts(child)


def is_choice(node: ast.AST) -> bool:
    """Returns whether a node is a comparison or a look-up by a method."""
    is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return isinstance(node, ast.Compare) or (is_method and node.func.attr in CHOOSERS)


def asks_class(node: ast.AST) -> bool:
    """Returns whether a choice uses a class name, or a type check is about a processor."""
    key = node.slice if isinstance(node, ast.Subscript) else node if is_choice(node) else None
    if key is not None and ast.unparse(node) not in ALLOWED:
        inner = [child for child in outside_texts(key) if isinstance(child, ast.Attribute)]
        return any(child.attr in ("__name__", "__qualname__", "__class__") for child in inner)
    is_check = isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass")
    return is_check and "processor" in ast.unparse(node.args[0])


def problems(source: str) -> list[str]:
    """Returns the places where source code depends on the model family."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if any(map(is_family_word, family_words(node))) or asks_class(node):
            found.append(f"line {getattr(node, 'lineno', '?')}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_other_file_depends_on_a_family(file):
    assert problems(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "if config.model_type == kind: pass",
        "kind = json.loads(text)['model_type']",
        "TIMED = ('qwen3_vl',)",
        "TRUNKS = ('visual.', other)",
        "name = 'model.vision_tower.encoder'",
        "tower = model.model.visual",
        "texts = {'InternVLProcessor': 1}",
        "from transformers import Qwen2VLProcessor",
        "from tvg.model.families.qwen2_vl import Family",
        "import tvg.model.families.internvl",
        "x = transformers.Qwen3VLConfig",
        "f = table.get(type(processor).__name__, other)",
        "f = table[type(model).__name__]",
        "if type(processor).__name__ == name: pass",
        "if name in type(model).__qualname__: pass",
        "if isinstance(self.processor, Known): pass",
    ],
)
def test_the_scan_detects_dependence_on_a_family(source):
    assert problems(source)


def test_the_scan_allows_prose_and_error_messages():
    source = '''"""As in Qwen2.5-VL."""
raise ValueError(f"got a {type(processor).__name__}, see data/clip=qwen")
'''
    assert problems(source) == []


def test_an_unknown_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    source = make_checkpoint(tmp_path)
    for refused in (source.load_family, lambda: trunk_fingerprint(tmp_path)):
        with pytest.raises(ValueError, match=r"of type 'llama', supported: .*'qwen3_vl'") as caught:
            refused()
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(ValueError, match="a SimpleNamespace is of type 'qwen9', supported: "):
        family_of(SimpleNamespace(model_type="qwen9"))
    with pytest.raises(ValueError, match=r"of type \['qwen2_vl'\], supported: "):
        family_of(SimpleNamespace(model_type=["qwen2_vl"]))


def test_a_folder_with_another_familys_processor_is_refused(tiny_checkpoint, monkeypatch):
    source = make_checkpoint(tiny_checkpoint)
    monkeypatch.setattr(source, "load_family", lambda: FAMILIES["internvl"])
    expected = "'internvl': expected InternVLProcessor, got Qwen2_5_VLProcessor"
    with pytest.raises(ValueError, match=expected) as caught:
        source.load_processor()
    assert str(caught.value).startswith(f"model.path: {tiny_checkpoint}: ")


@pytest.mark.parametrize("module", ["tvg.data.collate", "tvg.preparation.video_check"])
def test_reading_cached_clips_imports_no_transformers(module):
    code = f"import sys, {module}; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registry_keys_match_the_families():
    for model_type, family in FAMILIES.items():
        assert family.model_type == family.model_class.config_class.model_type == model_type
        assert type(pickle.loads(pickle.dumps(family))) is type(family)
