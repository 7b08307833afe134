"""Writes checkpoint folders, to which every rank adds files, atomically."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lightning.pytorch.strategies import Strategy

from tvg.core.writing import whole_folder


@contextmanager
def whole_folder_of_ranks(strategy: Strategy, folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder on all ranks; renames it to `folder` once all ranks are done.

    If a rank is killed inside the block, the previous `folder` is kept. The ranks need a common
    file system.

    Args:
        strategy: the strategy whose ranks call this together.
        folder: the folder to write; the first rank's path is used.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    folder = Path(strategy.broadcast(str(folder)))
    with ExitStack() as stack:
        temporary, error = None, None
        if strategy.is_global_zero:
            try:
                temporary = stack.enter_context(whole_folder(folder))
            except OSError as found:
                error = found
        # A rank that fails alone would leave the others waiting.
        temporary, error = strategy.broadcast((temporary, error))
        if error is not None:
            raise error
        assert temporary is not None
        yield temporary
        strategy.barrier()  # all ranks have written their files
    strategy.barrier()  # the folder has its final name
