"""Checks the weight files of a checkpoint folder; computes and verifies export checksums."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tvg.model.folder_files import read_json

CHECKSUM_FILE = "weights.sha256"  # in the format of `sha256sum --check`
ONE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 32 * 2**20  # 10,000 tensors take about 1 MiB
_LENGTH_BYTES = 8
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")
_BLOCKS = re.compile(r"(?:^|\.)(layers|blocks|layer)\.([0-9]+)\.")


def check_weight_files(folder: Path) -> list[Path]:
    """Returns the weight files; refuses missing, pickled, truncated or changed weights.

    Raises:
        ValueError: the message is one line that begins with `model.path:` and names the file.
    """
    files = _weight_files(folder)
    names: set[str] = set()
    for path in files:
        names |= read_header(path).keys()
    _check_layers(folder, names)
    check_checksums(folder)
    return files


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if (folder / ONE_FILE).is_file():
        return [folder / ONE_FILE]
    if not index.is_file():
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ValueError(
                f"model.path: {folder} holds pickled weights only ({pickles[0]}), which can run "
                "code when they are loaded; expected model.safetensors"
            )
        raise ValueError(f"model.path: {folder} holds no weights; expected {ONE_FILE}")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"model.path: {index}: expected a weight_map, got {type(shards).__name__}")
    files = []
    for name in sorted({str(name) for name in shards.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"model.path: {index}: {name!r} is not a safetensors file in the same folder"
            )
        if not (folder / name).is_file():
            raise ValueError(f"model.path: {folder} lacks {name}, which {index.name} lists")
        files.append(folder / name)
    return files


def read_header(path: Path) -> dict[str, Any]:
    """Returns the header of a safetensors file: tensor name -> dtype, shape, offsets.

    Raises:
        ValueError: the header is invalid or does not match the file's size. The message has the
            format described in `check_weight_files`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES or length > MAX_HEADER_BYTES:
            raise ValueError(
                f"model.path: {path} is truncated or not a safetensors file: its first bytes "
                f"announce a header of {length:,} bytes, but the file has {size:,} bytes"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        is_whole = _LENGTH_BYTES + length + end == size
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(f"model.path: {path}: its header cannot be read ({error})") from error
    if not is_whole:
        raise ValueError(
            f"model.path: {path} is truncated or has extra bytes: its header describes "
            f"{_LENGTH_BYTES + length + end:,} bytes, but the file has {size:,}"
        )
    return dict(header)


def _check_layers(folder: Path, names: Iterable[str]) -> None:
    """Refuses a config with more layers than the weights, before the layers are built."""
    held = max((int(m[2]) + 1 for name in names if (m := _BLOCKS.search(name))), default=0)
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    for section in (config, text if isinstance(text, dict) else {}):
        told = section.get("num_hidden_layers")
        if isinstance(told, int) and told > held:
            raise ValueError(
                f"model.path: {folder / 'config.json'}: num_hidden_layers is {told:,}, but the "
                f"weights hold {held:,} layers"
            )


def checksum_text(folder: Path) -> str:
    """Returns the SHA-256 of every weight file in a folder and its subfolders, one per line."""
    files = sorted(folder.rglob("*.safetensors"))
    return "".join(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def check_checksums(folder: Path) -> None:
    """Compares the weights of a tvg export with their checksums; other folders have none.

    Every rank verifies the files. Models are loaded before Lightning starts the process group, so
    ranks cannot share a result yet, and each rank reads these files anyway. If one rank refuses
    the files, the launcher stops the other ranks.

    Raises:
        ValueError: a file is missing or has changed, or the checksums cannot be read.
    """
    path = folder / CHECKSUM_FILE
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"model.path: {path} cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None or not _lies_within(match[2]):
            raise ValueError(
                f"model.path: {path}, line {number}: expected a SHA-256 and a file of this folder, "
                f"got {line!r}"
            )
        weights = folder / match[2]
        if not weights.is_file():
            raise ValueError(f"model.path: {folder} lacks {match[2]}, which {path.name} lists")
        if _sha256(weights) != match[1]:
            raise ValueError(
                f"model.path: {weights} has changed since it was exported (its checksum differs "
                f"from {path.name}): copy it again, or remove {path.name} if this is intended"
            )


def _lies_within(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
