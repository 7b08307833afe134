"""Turns SIGINT and SIGTERM into an exception, raised immediately or after the current step."""

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
    """Raised when a signal requests that this process stop.

    Like KeyboardInterrupt, it is not caught by `except Exception`.

    Attributes:
        signum: the signal.
        advice: lines that tell the user which results were saved and how to continue.
        is_agreed: True if all ranks of the job stop at the same step.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.advice: list[str] = []
        self.is_agreed = False

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process ended by this signal: 130 or 143."""
        return 128 + self.signum


@dataclass
class _State:
    """Signal state of this process; there is only one, as signals are per process."""

    owner: int | None = None  # process id of the command; None: no command handles signals
    is_held: bool = False
    is_raised: bool = False
    num_received: int = 0
    signum: int | None = None


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into `Interrupted` while a command runs.

    - The first signal raises immediately. While signals are held, it is only recorded (`pending`).
    - The second signal raises immediately, unless `Interrupted` was raised before.
    - A third signal ends the process without any clean-up.

    A signal that the caller ignores (`nohup`, background jobs) stays ignored. The context has an
    effect only in the main thread, and only for the outermost call.
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
    """Holds signals until `release`; the caller checks `pending` between its steps.

    The handlers are installed again, in case a library has replaced them.
    """
    if _state.owner == os.getpid():
        _state.is_held = True
        _install()


def release() -> None:
    """Ends `hold`.

    Raises:
        Interrupted: a signal was received while signals were held.
    """
    _state.is_held = False
    check()


@contextmanager
def holds_end_inside() -> Iterator[None]:
    """Ends any `hold` on exit, even after an error, so that it never affects a sweep's next job."""
    try:
        yield
    finally:
        _state.is_held = False


def pending() -> int | None:
    """Returns the first signal that requested a stop, or None."""
    return _state.signum


def ask(signum: int) -> None:
    """Records that this signal, received here or on another rank, requests a stop."""
    if _state.signum is None:
        _state.signum = signum


def check(*, is_agreed: bool = False) -> None:
    """Raises `Interrupted` if a signal is pending.

    Args:
        is_agreed: True if all ranks were informed of the signal and stop too.

    Raises:
        Interrupted: a signal is pending.
    """
    if _state.signum is not None:
        _state.is_raised = True
        stop = Interrupted(_state.signum)
        stop.is_agreed = is_agreed
        raise stop


@contextmanager
def advising(*lines: str) -> Iterator[None]:
    """Attaches advice for the user to an interruption raised inside the block."""
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
    if _state.owner != os.getpid():  # a forked child, not the command
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    _state.num_received += 1
    ask(number)
    if _state.is_raised:
        if _state.num_received > 2:  # the user does not want to wait for the clean-up
            os._exit(128 + number)
        return
    if _state.is_held and _state.num_received == 1:
        name = signal.Signals(number).name
        # Not through sys.stderr, which may be in the middle of a line when the handler runs.
        os.write(2, f"\n{name}: stopping after this step (second signal: immediately)\n".encode())
        return
    check()
