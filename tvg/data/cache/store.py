"""Stores tensors on disk, one safetensors file per entry, with a checksum of all bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from torch import Tensor

from tvg.core.writing import remove_leftovers, whole_file
from tvg.data.cache.errors import CorruptEntry

SUFFIX = ".safetensors"
FAILURE_SUFFIX = ".failed.json"  # of the file that records why an entry cannot be built
# The file has a single metadata key, so that the checksum in its value has a fixed offset. The
# first eight bytes are the header's length. The checksum covers the entire file, with zeros in the
# place of the checksum.
_FIELD = "tvg"
_BEFORE_CHECKSUM = f'{{"__metadata__":{{"{_FIELD}":"'.encode()
_CHECKSUM_AT = 8 + len(_BEFORE_CHECKSUM)
_CHECKSUM_DIGITS = 32
_NO_CHECKSUM = b"0" * _CHECKSUM_DIGITS


class Entry(NamedTuple):
    """The content of one entry."""

    tensors: dict[str, Tensor]
    meta: dict[str, str]


class _About(NamedTuple):
    key: str
    meta: dict[str, str]


class EntryStore:
    """Stores entries by key in a folder. Any number of processes may read and write concurrently.

    Args:
        folder: created when the first entry is written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Returns the path of an entry, whether or not it exists."""
        # Two digits per sub-folder: some file systems are slow with many files in one folder.
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def read(self, key: str) -> Entry | None:
        """Returns an entry exactly as it was written, or None if there is none.

        Raises:
            CorruptEntry: any byte of the file was changed, lost or added.
            OSError: the file exists but cannot be read.
        """
        data = self._checked(key)
        if data is None:
            return None
        return Entry(safetensors.torch.load(bytes(data)), _about(data).meta)

    def write(self, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> Path:
        """Writes an entry atomically; the same content gives the same bytes.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        path = self.path(key)
        _write_whole(path, _serialized(key, tensors, meta))
        return path

    def note_failure(self, key: str, problem: str) -> Path:
        """Records why an entry cannot be built, until `forget_failure` removes the record.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        path = self._failure_path(key)
        _write_whole(path, json.dumps({"problem": problem}).encode())
        return path

    def failure(self, key: str) -> str | None:
        """Returns the last problem recorded by `note_failure`; None if there is no readable one."""
        try:
            found = json.loads(self._failure_path(key).read_bytes())
        except (OSError, ValueError):
            return None
        problem = found.get("problem") if isinstance(found, dict) else None
        return problem if isinstance(problem, str) else None

    def forget_failure(self, key: str) -> None:
        self._failure_path(key).unlink(missing_ok=True)

    def _failure_path(self, key: str) -> Path:
        return self.path(key).with_suffix(FAILURE_SUFFIX)

    def verify(self, key: str) -> bool:
        """Returns whether an entry exists.

        Raises:
            CorruptEntry: it exists but differs from what was written.
            OSError: it exists but cannot be read.
        """
        return self._checked(key) is not None

    def remove_leftovers(self) -> list[Path]:
        """Removes the unfinished files of processes that were killed while writing."""
        folders = sorted(self.folder.glob("??"))
        return [path for folder in folders for path in remove_leftovers(folder)]

    def stored_keys(self) -> Iterator[str]:
        """Yields the key of every stored entry, in arbitrary order."""
        for path in self.folder.glob(f"??/*{SUFFIX}"):
            if not path.name.startswith("."):
                yield path.name.removesuffix(SUFFIX)

    def _checked(self, key: str) -> bytearray | None:
        """Returns the bytes of an entry after checking its checksum and key."""
        path = self.path(key)
        try:
            data = bytearray(path.read_bytes())
        except FileNotFoundError:
            return None
        place = slice(_CHECKSUM_AT, _CHECKSUM_AT + _CHECKSUM_DIGITS)
        found = bytes(data[place])
        if len(found) < _CHECKSUM_DIGITS:
            raise CorruptEntry(path, f"is truncated to {len(data)} bytes")
        data[place] = _NO_CHECKSUM
        if _checksum(data) != found:
            raise CorruptEntry(path, "does not match its checksum")
        if (kept := _about(data).key) != key:
            raise CorruptEntry(path, f"holds the entry {kept}")
        return data


def _write_whole(path: Path, data: bytes | bytearray) -> None:
    # No fsync: the checksum detects entries left incomplete by a power cut.
    with whole_file(path, sync=False) as temporary:
        temporary.write_bytes(data)


def _serialized(key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> bytearray:
    """Returns the bytes of an entry's file."""
    about = json.dumps(_About(key, dict(meta))._asdict(), sort_keys=True)
    data = bytearray(
        safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            metadata={_FIELD: f"{_NO_CHECKSUM.decode()} {about}"},
        )
    )
    assert data[8:_CHECKSUM_AT] == _BEFORE_CHECKSUM, bytes(data[:_CHECKSUM_AT])
    data[_CHECKSUM_AT : _CHECKSUM_AT + _CHECKSUM_DIGITS] = _checksum(data)
    return data


def _about(data: bytearray) -> _About:
    """Returns key and metadata from the bytes of an entry whose checksum has been verified."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return _About(**json.loads(header["__metadata__"][_FIELD][_CHECKSUM_DIGITS + 1 :]))


def _checksum(data: bytearray) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM_DIGITS // 2).hexdigest().encode()
