"""Base class of modules whose weights may be sharded over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn


class Sharding(Protocol):
    """How the weights of a module are distributed over ranks; see `tvg.training.strategy`.

    Every rank has to call these methods together, because they communicate.
    """

    def gather(self, module: nn.Module) -> None:
        """Makes all weights of a module complete on every rank."""

    def release(self, module: nn.Module) -> None:
        """Frees the weights that `gather` collected."""

    def full_state(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yields the complete tensors of the state dict, one at a time, sorted by name.

        A tensor is valid until the next one is requested.
        """


class Unsharded:
    """Every rank has all weights, so nothing is communicated."""

    def gather(self, module: nn.Module) -> None:
        pass

    def release(self, module: nn.Module) -> None:
        pass

    def full_state(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        yield from sorted(module.state_dict().items())


class ShardedModule(nn.Module):
    """A module whose weights can be gathered for many forward passes.

    Between `gather` and `release`, forward passes without gradients do not communicate, so each
    rank may make any number of them.

    Attributes:
        sharding: set by the strategy of a training run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sharding: Sharding = Unsharded()
        self._num_gathers = 0

    def gather(self) -> None:
        """Makes all weights complete on every rank until `release`; calls may be nested."""
        self._num_gathers += 1
        if self._num_gathers == 1:
            self.sharding.gather(self)

    def release(self) -> None:
        """Ends the last `gather`; the outermost one frees the collected weights."""
        assert self._num_gathers > 0, "release needs a call of gather first"
        self._num_gathers -= 1
        if self._num_gathers == 0:
            self.sharding.release(self)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gathers the weights inside the block; every rank enters and leaves it together."""
        self.gather()
        try:
            yield
        finally:
            self.release()

    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the complete tensors of the state dict; see `Sharding.full_state`."""
        return self.sharding.full_state(self)
