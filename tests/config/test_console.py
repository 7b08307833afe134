"""Tests that log lines and a progress bar on one terminal do not overwrite each other."""

import io
import logging
import sys
import warnings

from tqdm import tqdm

from tvg.config.console import BarAwareHandler, warnings_as_log_lines


def test_log_line_does_not_break_progress_bar(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = BarAwareHandler(terminal)
    with tqdm(total=3, file=terminal, ncols=40, mininterval=0, desc="bar") as bar:
        bar.update()
        handler.emit(logging.makeLogRecord({"msg": "told"}))
        bar.update()
    before, _, after = terminal.getvalue().partition("told\n")
    assert before.endswith("\r")  # the bar was wiped
    assert set(before.rstrip("\r").rpartition("\r")[2]) == {" "}
    assert "bar:" in after  # the bar was drawn again


def test_warning_does_not_break_progress_bar(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(logging.getLogger(), "handlers", [BarAwareHandler(terminal)])
    with (
        warnings.catch_warnings(),
        tqdm(total=3, file=terminal, ncols=40, mininterval=0, desc="bar") as bar,
        warnings_as_log_lines(),
    ):
        warnings.simplefilter("always")
        bar.update()
        warnings.warn("too few workers", UserWarning, stacklevel=1)
        bar.update()
    before, _, after = terminal.getvalue().partition("too few workers")
    wiped = before.rpartition("\r")[0]
    assert set(wiped.rpartition("\r")[2]) == {" "}
    assert "\n\n" not in after
    assert "bar:" in after


def test_showwarning_is_restored():
    before = warnings.showwarning
    with warnings_as_log_lines():
        assert warnings.showwarning is not before
    assert warnings.showwarning is before
