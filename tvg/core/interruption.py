"""SIGINT and SIGTERM as one exception: raised at once, or held back until a step is done."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked this process to end; like KeyboardInterrupt, no `except Exception` catches it.

    Attributes:
        signum: the signal.
        advice: lines for the user: what was kept, and how to go on.
        is_agreed: every rank of the job ends by it, at the same step.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.advice: list[str] = []
        self.is_agreed = False

    @property
    def exit_code(self) -> int:
        """The code that a shell reports for a process ended by this signal: 130 or 143."""
        return 128 + self.signum


@dataclass
class _State:
    """Of this process; signals belong to the process, so there is one."""

    owner: int | None = None  # process id of the command; None: no command handles signals
    is_held: bool = False
    is_raised: bool = False
    num_received: int = 0
    signum: int | None = None


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into `Interrupted` while a command runs.

    The first signal raises at once or, while signals are held, sets `pending`; the second one
    raises at once in any case; a third ends the process without any clean-up. A signal that the
    caller ignores (`nohup`, background jobs) stays ignored. Only the main thread can do this, and
    only the outermost call does.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or _state.owner == os.getpid():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _state.__init__(owner=os.getpid())  # type: ignore[misc]
    try:
        _install()
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.__init__()  # type: ignore[misc]


def hold() -> None:
    """Holds signals back from now on: whoever works in steps looks at `pending` between two.

    Takes the signals back from libraries that have installed handlers of their own meanwhile.
    """
    if _state.owner == os.getpid():
        _state.is_held = True
        _install()


def release() -> None:
    """Ends `hold`.

    Raises:
        Interrupted: a signal came meanwhile.
    """
    _state.is_held = False
    check()


@contextmanager
def holds_end_inside() -> Iterator[None]:
    """Ends what the block holds when an error leaves it: the next job of a sweep holds nothing."""
    try:
        yield
    finally:
        _state.is_held = False


def pending() -> int | None:
    """The signal that asked this process to end; None where there was none."""
    return _state.signum


def ask(signum: int) -> None:
    """Takes note that the command has to end, as another rank says."""
    if _state.signum is None:
        _state.signum = signum


def check(*, is_agreed: bool = False) -> None:
    """Raises what is pending.

    Args:
        is_agreed: all ranks know of it and end, too.

    Raises:
        Interrupted: a signal came.
    """
    if _state.signum is not None:
        _state.is_raised = True
        stop = Interrupted(_state.signum)
        stop.is_agreed = is_agreed
        raise stop


@contextmanager
def advising(*lines: str) -> Iterator[None]:
    """Gives an interruption of the work inside this advice for the user."""
    try:
        yield
    except Interrupted as stop:
        stop.advice = list(lines)
        raise


def _install() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)


def _receive(number: int, frame: FrameType | None) -> None:
    if _state.owner != os.getpid():  # a forked child: not the command
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    _state.num_received += 1
    ask(number)
    if _state.is_raised:
        if _state.num_received > 2:  # somebody does not want to wait for the clean-up
            os._exit(128 + number)
        return
    if _state.is_held and _state.num_received == 1:
        name = signal.Signals(number).name
        # Not through sys.stderr, which a handler may find in the middle of a line.
        os.write(2, f"\n{name}: stopping after this step (once more: at once)\n".encode())
        return
    check()
