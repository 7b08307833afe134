"""Writes and verifies the checksum of a checkpoint file.

torch writes a zip archive, and the checksum is stored as the archive's comment. It is inside the
file, so a rename replaces both together. Any zip tool can still read the archive.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch.utilities import rank_zero_warn

_LABEL = b"tvg sha256 "
_COMMENT_LENGTH = len(_LABEL) + 64  # bytes: the label and the digest in hexadecimal
# A zip archive ends with a 4-byte signature, 16 bytes, and the 2-byte length of the comment
# (APPNOTE 4.3.16). The checksum covers everything before the comment, including that length.
_END = b"PK\x05\x06"
_END_LENGTH = 22
_CHUNK = 2**24  # bytes
_SETTLED_S = 2.0  # a file changed more recently may change again with the same time stamp
_whole: dict[Path, tuple[int, int, int]] = {}  # verified files, with size, mtime and inode


class BrokenCheckpoint(ValueError):  # noqa: N818 - named after the finding
    """Raised for a checkpoint that is empty, damaged or incomplete; the message names the file."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}; restore a copy, or move the file away: resume=auto then uses an "
            "earlier checkpoint or starts a new run"
        )
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[BrokenCheckpoint], tuple[Path, str]]:
        return type(self), (self.path, self.problem)  # the default would pass only one argument


class ChecksumWriter:
    """Binary file for `torch.save` that hashes what it writes; `finish` adds the checksum.

    Args:
        file: file opened for writing, at its start.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._tail = b""  # last bytes, not yet written because `finish` changes the archive's end
        self.error: OSError | None = None  # the first write error

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        if len(view) < _END_LENGTH:
            waiting = self._tail + view
            self._put(waiting[:-_END_LENGTH])
            self._tail = waiting[-_END_LENGTH:]
        else:
            self._put(self._tail)
            self._put(view[:-_END_LENGTH])
            self._tail = bytes(view[-_END_LENGTH:])
        return len(view)

    def flush(self) -> None:
        self._guarded(self._file.flush)

    def finish(self) -> None:
        """Writes the end of the archive, with the checksum as its comment."""
        assert len(self._tail) == _END_LENGTH, self._tail
        assert self._tail.startswith(_END), self._tail
        self._put(self._tail[:-2] + struct.pack("<H", _COMMENT_LENGTH))
        self._file.write(_LABEL + self._hash.hexdigest().encode())
        self._file.flush()

    def _put(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._guarded(self._file.write, data)

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as error:
            self.error = self.error or error
            raise


def check_checkpoint(path: Path) -> None:
    """Verifies a checkpoint against its checksum; each process reads a file only once.

    A checkpoint without a checksum, from an older version, is accepted with a warning.

    Raises:
        BrokenCheckpoint: the file is empty, truncated or altered.
        OSError: the file cannot be read.
    """
    about = path.stat()
    known = (about.st_size, about.st_mtime_ns, about.st_ino)
    if _whole.get(path) == known:
        return
    if about.st_size == 0:
        raise BrokenCheckpoint(path, "is empty")
    with path.open("rb") as file:
        file.seek(max(0, about.st_size - _COMMENT_LENGTH - _END_LENGTH))
        end = file.read()
        comment = end[-_COMMENT_LENGTH:]
        if not comment.startswith(_LABEL):
            _check_old(path, end)
            return
        file.seek(0)
        found = _digest(file, about.st_size - _COMMENT_LENGTH)
    if found != comment[len(_LABEL) :]:
        raise BrokenCheckpoint(path, "does not match its checksum: it was changed after writing")
    if time.time() - about.st_mtime > _SETTLED_S:
        _whole[path] = known


def _check_old(path: Path, end: bytes) -> None:
    """Accepts a complete archive without a comment, as torch writes it, with a warning."""
    last = end[-_END_LENGTH:]
    if not (last.startswith(_END) and last.endswith(b"\0\0")):
        raise BrokenCheckpoint(path, "is truncated or damaged: its end is missing")
    rank_zero_warn(f"{path} has no checksum (written by an older version): damage is not detected")


def _digest(file: BinaryIO, size: int) -> bytes:
    sha256 = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        sha256.update(chunk)
        size -= len(chunk)
    return sha256.hexdigest().encode()
