"""Defines the errors of a cache; workers can import this module without PyTorch."""

from __future__ import annotations

from pathlib import Path


class CorruptEntry(ValueError):  # noqa: N818 - named after the entry that was found
    """A cache entry whose bytes have changed or are missing; the message names the file."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}; expected an unchanged cache entry")
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[CorruptEntry], tuple[Path, str]]:
        return type(self), (self.path, self.problem)  # the default would pass only the message


class UnusableStore(ValueError):  # noqa: N818 - as above
    """A store whose folder cannot be read or written; the message names the folder."""
