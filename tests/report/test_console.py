"""Tests that tables in log files keep their full width."""

from __future__ import annotations

from tvg.report.console import make_console
from tvg.report.metrics_table import print_metrics


def test_tables_in_log_files_are_not_cut(capsys):
    path = "/a/folder/with/a/rather/long/name/runs/demo/grpo/export"
    print_metrics({path: {"miou": 0.5}, f"{path}_2": {"miou": 0.25}})
    shown = capsys.readouterr().out
    assert f"{path}_2" in shown
    assert "…" not in shown


def test_a_terminal_keeps_its_own_width(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats the output as a terminal
    monkeypatch.setenv("COLUMNS", "93")
    assert make_console().width == 93
