"""Checks the files of a checkpoint folder before a library reads them.

A checkpoint may come from an untrusted source. Its files must not name code or paths outside the
folder, and their sizes and numbers of layers must be plausible for a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MIB = 2**20
MAX_JSON_BYTES = 32 * MIB  # Qwen3's tokenizer.json is 11 MiB
MAX_TEMPLATE_BYTES = MIB // 4
MAX_LAYERS = 1000
MAX_SIZE = 10**8  # of any width, or of the vocabulary
_TOKENIZER_FILES = ("vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")
_CODE_KEYS = ("auto_map", "custom_generate", "custom_pipelines")
_LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "depth", "num_blocks")
_SIZE_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "embed_dim", "head_dim", "out_hidden_size"),
    *("num_attention_heads", "num_key_value_heads", "num_heads", "image_size", "patch_size"),
)


def check_is_checkpoint(folder: Path) -> None:
    """Rejects a path that is not a checkpoint folder.

    Raises:
        ValueError: there is no such folder, or it contains no `config.json`.
    """
    if not folder.is_dir():
        raise ValueError(f"model.path: no such folder: {folder}")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"model.path: {folder} contains no config.json; expected a Hugging Face checkpoint "
            "folder, such as the `export/` folder of a run"
        )


def check_folder_files(folder: Path) -> None:
    """Refuses folders that contain more than a model's data; does not read the weights.

    Raises:
        ValueError: a file names code or another folder, is too large, or is not a JSON object. The
            message is one line. It begins with `model.path:` and names the file.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"model.path: {folder} is an adapter (adapter_config.json) without its base model: "
            "merge it into the base model first (`export/` of a run is already merged)"
        )
    for path in sorted(folder.glob("*.json")):
        read_json(path)
    for path in sorted(folder.glob("*.jinja")):
        _check_size(path, MAX_TEMPLATE_BYTES)
    for name in _TOKENIZER_FILES:
        if (folder / name).exists():
            _check_size(folder / name, MAX_JSON_BYTES)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a checkpoint and checks that it names no code.

    Raises:
        ValueError: as for `check_folder_files`.
    """
    _check_size(path, MAX_JSON_BYTES)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"model.path: {path} cannot be read ({error})") from error
    if path.name == "vocab.json" or path.name.endswith(".index.json"):
        return found if isinstance(found, dict) else {}
    if not isinstance(found, dict):
        raise ValueError(f"model.path: {path}: expected a JSON object, got {type(found).__name__}")
    if path.name != "tokenizer.json":
        for key, value in _pairs(found):
            _check_pair(path, key, value)
    return found


def _check_size(path: Path, limit: int) -> None:
    size = path.stat().st_size
    if size > limit:
        raise ValueError(
            f"model.path: {path} has {size / MIB:,.1f} MiB; at most {limit / MIB:g} MiB are allowed"
        )


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields all keys of a JSON value at any depth, with their values."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield from node.items()
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _check_pair(path: Path, key: str, value: Any) -> None:
    if key in _CODE_KEYS and value:
        raise ValueError(
            f"model.path: {path}: {key} names code ({_short(value)}), and tvg runs no code of "
            "a checkpoint: remove the key if transformers itself implements the model"
        )
    if "attn_implementation" in key and isinstance(value, str) and "/" in value:
        raise ValueError(f"model.path: {path}: {key} names a kernel to download, {_short(value)}")
    if key == "chat_template" and len(json.dumps(value)) > MAX_TEMPLATE_BYTES:
        raise ValueError(
            f"model.path: {path}: {key} has more than {MAX_TEMPLATE_BYTES / MIB:g} MiB"
        )
    if path.name == "config.json" and isinstance(value, int):
        for keys, limit in ((_LAYER_KEYS, MAX_LAYERS), (_SIZE_KEYS, MAX_SIZE)):
            if key in keys and not 0 <= value <= limit:
                raise ValueError(
                    f"model.path: {path}: {key}: expected at most {limit:,}, got {value:,}"
                )


def one_line(error: Exception) -> str:
    """Returns the message of a library's error on one line, truncated to a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:397]}..."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
