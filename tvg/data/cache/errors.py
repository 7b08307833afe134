"""Errors of a cache, in a module of their own so that workers can import them without PyTorch."""

from __future__ import annotations

from pathlib import Path


class CorruptEntry(ValueError):  # noqa: N818 - named after what was found, like VideoInfo
    """A cache entry whose bytes have changed or are missing; the message names the file."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}; expected a cache entry as it was written")
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[CorruptEntry], tuple[Path, str]]:
        return type(self), (self.path, self.problem)  # the default passes a single argument


class UnusableStore(ValueError):  # noqa: N818 - as above
    """A store that cannot be read or written to, for any key; the message names the folder."""
