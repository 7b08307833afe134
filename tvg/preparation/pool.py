"""Processes many files in workers; a worker that hangs or crashes does not affect the others."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from tvg.core.worker_process import WORKERS
from tvg.data.cache.errors import UnusableStore
from tvg.data.video.decode import VideoError
from tvg.data.video.decode_process import alarm
from tvg.data.video.memory_limit import memory_problem

Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result", covariant=True)
I = TypeVar("I")  # noqa: E741 - invariant versions of the two above
R = TypeVar("R")

QUEUE_PER_WORKER = 4  # few queued items: no worker waits, and little is lost if the pool stops
ALARM_GRACE_S = 10.0  # a worker stops itself this long after its time limit
MAX_LOSSES = 3  # an item fails if this many pools break while they process it
POLL_S = 5.0  # how often to check that the pool is alive


@dataclass(frozen=True)
class Failure:
    """The problem with one item."""

    problem: str


class Work(Protocol[Item, Result]):
    """The work for each item; must be picklable, and importable in a new process."""

    def start(self) -> None:
        """Prepares a new worker process (imports, threads), outside any item's time limit."""
        ...

    def __call__(self, item: Item, /) -> Result: ...


def run_all(
    work: Work[I, R],
    items: Sequence[I],
    *,
    num_workers: int,
    timeout_s: float | None,
    label: str,
) -> list[R | Failure]:
    """Returns the result or failure of each item, in order.

    A worker process that exceeds the time limit or dies is replaced. Ctrl-C and SIGTERM first stop
    the workers and are then passed on to the caller.

    Args:
        work: called with each item.
        items: items to process.
        num_workers: worker processes; 0 works in this process, and `work` must enforce the time
            limit itself.
        timeout_s: maximum time for one item in seconds; None: no limit.
        label: label of the progress bar.

    Raises:
        UnusableStore: the cache cannot be used; this error would affect every item.
        RuntimeError: no worker process starts.
    """
    assert num_workers >= 0, num_workers
    show_s = 0.5 if sys.stderr.isatty() else 30.0  # fewer lines in log files
    with tqdm(total=len(items), desc=label, unit="video", mininterval=show_s) as progress:
        if num_workers == 0:
            results = []
            for item in items:
                results.append(attempt(work, item))
                progress.update()
            return results
        with _sigterm_as_exit():
            return _PoolRun(work, items, num_workers, timeout_s, progress).run()


class _PoolRun(Generic[I, R]):
    """One call of `run_all` with worker processes."""

    def __init__(
        self,
        work: Work[I, R],
        items: Sequence[I],
        num_workers: int,
        timeout_s: float | None,
        progress: tqdm[None],
    ) -> None:
        self.work, self.items, self.progress = work, items, progress
        self.num_workers, self.timeout_s = num_workers, timeout_s
        self.waiting = deque(range(len(items)))
        self.results: dict[int, R | Failure] = {}
        self.losses: Counter[int] = Counter()

    def run(self) -> list[R | Failure]:
        num_barren = 0  # pools in a row that broke without a single result
        while self.waiting:
            num_before = len(self.results)
            self._use_pool()
            num_barren = num_barren + 1 if len(self.results) == num_before else 0
            if num_barren == MAX_LOSSES:
                raise RuntimeError(
                    "the worker processes exit before they have processed a file: their error "
                    "messages are printed above (a script that starts workers needs "
                    '`if __name__ == "__main__":`)'
                )
        return [self.results[index] for index in range(len(self.items))]

    def _use_pool(self) -> None:
        """Works until everything is done or the pool breaks."""
        pool = ProcessPool(
            max_workers=min(self.num_workers, len(self.waiting)),
            initializer=self.work.start,
            # No fork: threads of decoders and PyTorch do not survive it.
            context=WORKERS,
        )
        running: dict[Future[R | Failure], int] = {}
        try:
            while (self.waiting or running) and self._hand_out(pool, running):
                done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    self._take(future, running.pop(future))
            for index in running.values():  # the pool broke
                self._lose(index)
        finally:
            pool.stop()
            pool.join()

    def _hand_out(self, pool: ProcessPool, running: dict[Future[R | Failure], int]) -> bool:
        """Fills the pool's queue; returns False when the pool is broken."""
        while self.waiting and len(running) < QUEUE_PER_WORKER * self.num_workers:
            index = self.waiting[0]
            limit_s = None if self.timeout_s is None else self.timeout_s + ALARM_GRACE_S
            try:
                future = pool.schedule(
                    attempt, (self.work, self.items[index], limit_s), timeout=self.timeout_s
                )
            except RuntimeError:
                return False
            running[future] = index
            self.waiting.popleft()
        return bool(pool.active)

    def _take(self, future: Future[R | Failure], index: int) -> None:
        try:
            result = future.result()
        except TimeoutError:
            result = self._timed_out()
        except ProcessExpired as error:
            result = self._died(error.exitcode)
        except BrokenProcessPool:
            self._lose(index)
            return
        self._finish(index, result)

    def _lose(self, index: int) -> None:
        """Requeues an item after all others, or fails it after `MAX_LOSSES` lost pools."""
        self.losses[index] += 1
        if self.losses[index] < MAX_LOSSES:
            self.waiting.append(index)
        else:
            self._finish(index, Failure("the workers died repeatedly while this file was queued"))

    def _finish(self, index: int, result: R | Failure) -> None:
        self.results[index] = result
        self.progress.update()

    def _timed_out(self) -> Failure:
        return Failure(
            f"was not decoded within the time limit of {self.timeout_s:g} s per clip (timeout_s); "
            f"the decoder was stopped"
        )

    def _died(self, status: int) -> Failure:
        if status == -signal.SIGALRM:
            return self._timed_out()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return Failure(f"the decoder process died ({how})")


def attempt(work: Callable[[I], R], item: I, limit_s: float | None = None) -> R | Failure:
    """Processes one item; returns a `Failure` instead of raising the item's errors."""
    try:
        with contextlib.nullcontext() if limit_s is None else alarm(limit_s):
            return work(item)
    except UnusableStore:
        raise
    except VideoError as error:
        return Failure(memory_problem(error) or error.problem)
    except Exception as error:  # one bad file must not abort the run
        first_line = str(error).strip().split("\n")[0]
        text = f"the decoder failed ({type(error).__name__}: {first_line})"
        return Failure(memory_problem(error) or text)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit, so that the workers are stopped too."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def leave(number: int, _: object) -> None:
        assert os.getpid() == owner
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
