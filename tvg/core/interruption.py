"""Turns SIGINT and SIGTERM into one exception, raised at once or held until a step is done."""

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
    """Raised when a signal asks this process to end.

    Like KeyboardInterrupt, it is not caught by `except Exception`.

    Attributes:
        signum: the signal.
        advice: lines for the user: what was kept, and how to continue.
        is_agreed: True if all ranks of the job end at the same step.
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

    The first signal raises at once or, while signals are held, sets `pending`. The second one
    always raises at once. A third ends the process without any clean-up. A signal that the caller
    ignores (`nohup`, background jobs) stays ignored. This has an effect only in the main thread,
    and only for the outermost call.
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
    """Holds signals from now on; the caller checks `pending` between its steps.

    Reinstalls our handlers, in case libraries have replaced them meanwhile.
    """
    if _state.owner == os.getpid():
        _state.is_held = True
        _install()


def release() -> None:
    """Ends `hold`.

    Raises:
        Interrupted: a signal was received meanwhile.
    """
    _state.is_held = False
    check()


@contextmanager
def holds_end_inside() -> Iterator[None]:
    """Ends any `hold` on exit, also after an error, so that the next job of a sweep has none."""
    try:
        yield
    finally:
        _state.is_held = False


def pending() -> int | None:
    """Returns the signal that asked this process to end, or None."""
    return _state.signum


def ask(signum: int) -> None:
    """Records that the command has to end because another rank received this signal."""
    if _state.signum is None:
        _state.signum = signum


def check(*, is_agreed: bool = False) -> None:
    """Raises `Interrupted` if a signal is pending.

    Args:
        is_agreed: True if all ranks know of the signal and end too.

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
        os.write(2, f"\n{name}: stopping after this step (once more: at once)\n".encode())
        return
    check()
