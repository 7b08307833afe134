"""Writes checkpoints in a thread, while training continues."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tvg.training.checkpoint import AtomicCheckpointIO


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """Copies a checkpoint to host memory and writes the copy in a thread.

    There is at most one writer and one copy: a save waits until the previous one is complete.
    Lightning's `AsyncCheckpointIO` is not used. It copies tensors on their own device, so it would
    need GPU memory for a complete checkpoint, and it queues any number of copies.
    """

    def __init__(self) -> None:
        super().__init__()
        self._executor: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        self.wait()
        save = partial(super().save_checkpoint, host_copy(checkpoint), path, storage_options)
        self._submit(save)

    def after_save(self, action: Callable[[], None]) -> None:
        self._submit(partial(super().after_save, action))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        self.wait()
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        self.wait()
        super().remove_checkpoint(path)

    def wait(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
            Exception: the write failed because of a bug. Disk errors are kept in `failure`.
        """
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def teardown(self) -> None:
        self.wait()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _submit(self, call: Callable[[], None]) -> None:
        if self._executor is None:  # also after `teardown`, as a fit may be followed by a save
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending.append(self._executor.submit(call))


def host_copy(value: Any, known: dict[tuple[str, int], torch.UntypedStorage] | None = None) -> Any:
    """Returns a copy of nested dicts, lists and tuples, with all tensors copied to host memory.

    Tensors that share memory, such as tied weights, share it in the copy, too. The file is
    therefore the same as without the copy.
    """
    known = {} if known is None else known
    if isinstance(value, Tensor):
        return _tensor_on_host(value.detach(), known)
    if isinstance(value, dict):
        return type(value)((key, host_copy(item, known)) for key, item in value.items())
    if isinstance(value, list):
        return [host_copy(item, known) for item in value]
    if type(value) is tuple:
        return tuple(host_copy(item, known) for item in value)
    return value


def _tensor_on_host(value: Tensor, known: dict[tuple[str, int], torch.UntypedStorage]) -> Tensor:
    source = value.untyped_storage()
    place = (str(value.device), source.data_ptr())
    if place not in known or source.nbytes() == 0:
        known[place] = source.cpu() if value.device.type != "cpu" else source.clone()
    copy = torch.empty(0, dtype=value.dtype)
    copy.set_(known[place], value.storage_offset(), value.size(), value.stride())
    return copy
