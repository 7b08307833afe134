"""Tests that stop signals raise an exception immediately, or after the current step."""

import os
import signal
from contextlib import suppress

import pytest

from tvg.core import interruption
from tvg.core.deadline import Deadline
from tvg.core.interruption import Interrupted, advising, handled, hold, pending, release


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)]
)
def test_signal_raises_immediately(number, code):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, handled():
        send(number)
    assert (caught.value.exit_code, str(caught.value)) == (code, signal.Signals(number).name)
    assert signal.getsignal(number) is before
    assert pending() is None


def test_held_signal_raises_at_release(capfd):
    with handled():
        hold()
        send(signal.SIGTERM)
        assert pending() == signal.SIGTERM
        assert "SIGTERM: stopping after this step" in capfd.readouterr().err
        with pytest.raises(Interrupted):
            release()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGUSR1, 0)]
)
def test_exit_code_is_zero_if_a_scheduler_stops_a_saved_job(number, code):
    with handled():
        hold()
        send(number)
        with pytest.raises(Interrupted) as caught:
            release(is_saved=True)
    assert caught.value.exit_code == code


def test_signal_after_the_last_save_exits_with_zero():
    with handled():
        with interruption.holds_end_inside():
            hold()
            release(is_saved=True)
            with pytest.raises(Interrupted) as caught:
                send(signal.SIGTERM)
        assert caught.value.exit_code == 0
        with pytest.raises(Interrupted) as caught:  # of a sweep's next job
            interruption.check()
        assert caught.value.exit_code == 143


def test_near_deadline_requests_a_stop():
    clock = [0.0]
    deadline = Deadline(100.0, margin_s=10.0, clock=lambda: clock[0])
    with handled():
        hold()
        interruption.set_deadline(deadline)
        for clock[0] in (0.0, 20.0, 30.0):  # 30 + 20 for the longest step + 10 < 100
            interruption.check_deadline()
            assert pending() is None
        clock[0] = 71.0
        interruption.check_deadline()
        assert pending() == signal.SIGUSR1
        with pytest.raises(Interrupted, match=r"its deadline \(train\.deadline\)") as caught:
            release(is_saved=True)
        assert caught.value.exit_code == 0


def test_deadline_ends_with_its_job():
    with handled():
        with interruption.holds_end_inside():
            interruption.set_deadline(Deadline(0.0, margin_s=0.0))
        interruption.check_deadline()
        assert pending() is None


def test_second_signal_raises_immediately():
    with handled():
        hold()
        send(signal.SIGINT)
        with pytest.raises(Interrupted) as caught:
            send(signal.SIGTERM)
        assert caught.value.signum == signal.SIGINT  # the first signal


def test_second_signal_does_not_interrupt_cleanup():
    with handled():
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(Interrupted):
            interruption.check()


def test_third_signal_ends_process():
    child = os.fork()
    if child == 0:
        with handled():
            try:
                send(signal.SIGTERM)
            except Interrupted:
                send(signal.SIGTERM)
                send(signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_hold_replaces_signal_handlers_of_library():
    with handled():
        signal.signal(signal.SIGTERM, lambda *_: None)
        hold()
        send(signal.SIGTERM)
        assert pending() == signal.SIGTERM
        with pytest.raises(Interrupted):
            release()


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled():
            send(signal.SIGINT)
            assert pending() is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_hold_outside_of_command_does_nothing():
    before = signal.getsignal(signal.SIGTERM)
    hold()
    release()
    assert signal.getsignal(signal.SIGTERM) is before


def test_interruption_contains_advice():
    with pytest.raises(Interrupted) as caught, handled(), advising("go on"):
        send(signal.SIGTERM)
    assert caught.value.advice == ["go on"]


def test_forked_child_has_default_signal_handling():
    with handled():
        child = os.fork()
        if child == 0:
            send(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_hold_ends_with_failed_job():
    with handled():
        with suppress(ZeroDivisionError), interruption.holds_end_inside():
            hold()
            raise ZeroDivisionError
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
