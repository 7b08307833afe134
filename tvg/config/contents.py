"""Computes short digests of files that decide a result, once per process and file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

MISSING = "missing"
_WHOLE_BYTES = 32 * 2**20  # files up to this size are read completely
_NUM_SAMPLES = 32  # blocks read from a larger file
_SAMPLE_BYTES = 64 * 2**10
_DIGITS = 16


def file_digest(path: str | Path) -> str:
    """Returns the digest of a file's complete content, or "missing" if there is no such file."""
    return _digest(path, _read_whole)


def sampled_digest(path: str | Path) -> str:
    """Returns the digest of a file's size and of evenly spaced blocks, including both ends.

    Files of up to 32 MiB are read completely. Training changes every trained weight, so different
    weights of equal size have different digests.
    """
    return _digest(path, _read_samples)


def checkpoint_digest(folder: str | Path) -> str:
    """Returns the digest of the names and contents of a checkpoint folder's files."""
    try:
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    except OSError:
        return MISSING
    digest = hashlib.sha256()
    for path in files:
        if not path.name.startswith("."):
            digest.update(f"{path.name} {sampled_digest(path)}\n".encode())
    return digest.hexdigest()[:_DIGITS]


def _digest(path: str | Path, read: Callable[[Path], str]) -> str:
    """Returns `read(path)`, cached until the file's inode, size or modification time changes."""
    path = Path(path).absolute()
    try:
        stat = path.stat()
        return _known_digest(read, path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    except OSError:  # not cached
        return MISSING


@functools.lru_cache(maxsize=4096)
def _known_digest(read: Callable[[Path], str], path: Path, version: tuple[int, ...]) -> str:
    return read(path)


def _read_whole(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def _read_samples(path: Path) -> str:
    size = path.stat().st_size
    if size <= _WHOLE_BYTES:
        return _read_whole(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_NUM_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * number // (_NUM_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:_DIGITS]
