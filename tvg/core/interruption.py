"""Turns stop signals into an exception, raised immediately or after the current step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tvg.core.deadline import Deadline

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # schedulers warn jobs by SIGUSR1
_OF_SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(BaseException):
    """Raised when a signal requests that this process stop.

    Like KeyboardInterrupt, it is not caught by `except Exception`.

    Attributes:
        signum: the signal.
        advice: lines that tell the user which results were saved and how to continue.
        is_agreed: True if all ranks of the job stop at the same step.
        is_saved: True if a later command can continue without losing a completed step.
    """

    def __init__(self, signum: int, cause: str | None = None) -> None:
        super().__init__(cause or signal.Signals(signum).name)
        self.signum = signum
        self.advice: list[str] = []
        self.is_agreed = False
        self.is_saved = False

    @property
    def exit_code(self) -> int:
        """The command's exit code.

        It is 0 if a scheduler stopped the command and everything is saved. Otherwise, it is the
        code that a shell reports for a process ended by the signal: 130, 138 or 143.
        """
        is_done = self.is_saved and self.signum in _OF_SCHEDULERS
        return 0 if is_done else 128 + self.signum


@dataclass
class _State:
    """Signal state of this process; there is only one, as signals are per process."""

    owner: int | None = None  # process id of the command; None: no command handles signals
    is_held: bool = False
    is_raised: bool = False
    num_received: int = 0
    signum: int | None = None
    cause: str | None = None  # what requested the stop, if it was no signal
    deadline: Deadline | None = None
    is_saved: bool = False  # as for `Interrupted`, from `release` on


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Turns SIGINT, SIGTERM and SIGUSR1 into `Interrupted` while a command runs.

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
        _state.is_held, _state.is_saved = True, False
        _install()


def release(*, is_saved: bool = False) -> None:
    """Ends `hold`.

    Args:
        is_saved: as for `Interrupted`, now and for later signals.

    Raises:
        Interrupted: a signal was received while signals were held.
    """
    _state.is_held, _state.is_saved = False, is_saved
    check()


@contextmanager
def holds_end_inside() -> Iterator[None]:
    """Ends any `hold` on exit, even after an error, so that it never affects a sweep's next job.

    The deadline ends, too.
    """
    try:
        yield
    finally:
        _state.is_held = _state.is_saved = False
        _state.deadline = None


def pending() -> int | None:
    """Returns the first signal that requested a stop, or None."""
    return _state.signum


def ask(signum: int) -> None:
    """Records that this signal, received here or on another rank, requests a stop."""
    if _state.signum is None:
        _state.signum = signum


def set_deadline(deadline: Deadline | None) -> None:
    """Sets the time before which `check_deadline` requests a stop."""
    _state.deadline = deadline


def check_deadline() -> None:
    """Requests a stop, as SIGUSR1 does, if the deadline is near; call it between steps."""
    if _state.deadline is not None and _state.signum is None and _state.deadline.is_near():
        _state.cause = "its deadline (train.deadline)"
        ask(signal.SIGUSR1)


def check(*, is_agreed: bool = False) -> None:
    """Raises `Interrupted` if a signal is pending.

    Args:
        is_agreed: True if all ranks were informed of the signal and stop too.

    Raises:
        Interrupted: a signal is pending.
    """
    if _state.signum is not None:
        _state.is_raised = True
        stop = Interrupted(_state.signum, _state.cause)
        stop.is_agreed, stop.is_saved = is_agreed, _state.is_saved
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
