"""Short digests of the files that decide a result."""

from __future__ import annotations

import hashlib
from pathlib import Path

MISSING = "missing"
_WHOLE_BYTES = 32 * 2**20  # files up to this size are read whole
_NUM_SAMPLES = 32  # blocks read of a larger file
_SAMPLE_BYTES = 64 * 2**10
_DIGITS = 16


def file_digest(path: str | Path) -> str:
    """Digest of a text file's whole content, or "missing" where there is no such file."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return MISSING
    return digest.hexdigest()[:_DIGITS]


def sampled_digest(path: str | Path) -> str:
    """Digest of size, both ends and evenly spaced blocks; of all bytes up to 32 MiB.

    Training moves every trained weight, so that other weights of one size give another digest.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size <= _WHOLE_BYTES:
            return file_digest(path)
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            for number in range(_NUM_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * number // (_NUM_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError:
        return MISSING
    return digest.hexdigest()[:_DIGITS]


def checkpoint_digest(folder: str | Path) -> str:
    """Digest of a checkpoint folder's files by name; independent of where the folder lies."""
    try:
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    except OSError:
        return MISSING
    digest = hashlib.sha256()
    for path in files:
        if not path.name.startswith("."):
            digest.update(f"{path.name} {sampled_digest(path)}\n".encode())
    return digest.hexdigest()[:_DIGITS]
