"""A log line and a progress bar share a terminal without writing into each other."""

import io
import logging
import sys

from tqdm import tqdm

from tvg.config.console import BarAwareHandler


def test_a_log_line_stands_alone_beside_a_bar(monkeypatch):
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
    assert "bar:" in after  # and drawn again
