"""Errors of a cache; alone here, since worker processes need no PyTorch to say it."""

from __future__ import annotations

from pathlib import Path


class CorruptEntry(ValueError):  # noqa: N818 - it names a thing found, as VideoInfo does
    """An entry of which a byte was changed or lost; the message names the file."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}; expected a cache entry as it was written")
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[CorruptEntry], tuple[Path, str]]:
        return type(self), (self.path, self.problem)  # the default would call it with one argument


class UnusableStore(ValueError):  # noqa: N818 - as above
    """A store that cannot be read or written to, for any key; the message names the folder."""
