"""Writes text and JSON files atomically, and checks output folders before any work is done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tvg.core.writing import whole_file


def write_text(path: str | Path, text: str) -> Path:
    """Writes UTF-8 text atomically; creates the folder. The file is never incomplete.

    Raises:
        OSError: the disk is full or not writable. The message names the file and, if the disk is
            full, the disk.
    """
    path = Path(path)
    with (
        whole_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.write(text)
    return path


def write_json(path: str | Path, obj: Any) -> Path:
    """Writes indented JSON atomically.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"cannot write {path}: {error}") from error
    return write_text(path, valid_unicode(text) + "\n")


def valid_unicode(text: str) -> str:
    """Replaces lone surrogates by `?`; a tokenizer may emit them, but UTF-8 cannot encode them."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def output_folder_check(path: str | Path) -> Path:
    """Checks, before any work is done, that results can be written to a folder.

    The folder need not exist; nothing is created.

    Raises:
        ValueError: the path is a file, is below a file, or is not writable.
    """
    path = Path(path)
    refusal = f"cannot write results to the output folder {path}"
    if "\0" in str(path):
        raise ValueError(f"{refusal!r}: the name contains a NUL character")
    try:
        nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    except OSError as error:  # name too long, or folder not readable
        raise ValueError(f"{refusal}: {error}") from error
    if not nearest.is_dir():
        raise ValueError(f"{refusal}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{refusal}: {nearest} is read-only for this user")
    return path
