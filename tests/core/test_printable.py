"""Tests that control characters are escaped before they reach a terminal."""

from __future__ import annotations

import logging
import re

import pytest

from tvg.core.printable import PrintableFormatter, printable, printable_line

ATTACKS = {
    "\x1b]0;owned\x07": r"\x1b]0;owned\x07",  # sets the title of the window
    "\x1b[2J": r"\x1b[2J",  # clears the screen
    "a\rb": r"a\rb",
    "\x9b31m": r"\x9b31m",  # the one-byte form of ESC [
    "a\u202egpj.exe": r"a\u202egpj.exe",  # shown from right to left
    "\udce9": r"\udce9",  # a byte of a file name that is not UTF-8
    "x\x7fy\x00": r"x\x7fy\x00",
}


@pytest.mark.parametrize(("text", "shown"), ATTACKS.items())
def test_control_characters_become_escapes(text: str, shown: str) -> None:
    assert printable(text) == printable_line(text) == shown
    assert shown.encode().isascii()


def test_ordinary_text_is_unchanged() -> None:
    text = "A café, 東京 🎬: 50 % done\n\tnext"
    assert printable(text) == text
    assert printable_line(text) == r"A café, 東京 🎬: 50 % done\n\tnext"


def test_log_lines_are_printable() -> None:
    record = logging.LogRecord(
        "tvg", logging.WARNING, "f", 1, "example skipped: %s", ("\x1b[2J",), None
    )
    assert PrintableFormatter("%(message)s").format(record) == r"example skipped: \x1b[2J"


def test_all_logs_of_commands_use_the_formatter() -> None:
    from pathlib import Path

    import yaml

    folder = Path(__file__).resolve().parents[2] / "conf/hydra"
    for file in folder.glob("*_logging/tvg.yaml"):
        formatters = yaml.safe_load(file.read_text())["formatters"]
        classes = {name: each.get("class") for name, each in formatters.items()}
        assert set(classes.values()) == {"tvg.core.printable.PrintableFormatter"}, (file, classes)


def test_video_error_is_one_printable_line() -> None:
    from tvg.data.video.decode import VideoError

    error = VideoError("a\nb\x1b[2J.mp4", "is odd")
    assert str(error) == r"a\nb\x1b[2J.mp4: is odd"
    assert error.path == "a\nb\x1b[2J.mp4"


def test_tables_and_lines_of_reports_are_printable() -> None:
    from io import StringIO

    from rich.console import Console

    from tvg.jobs.prepare import _print_lines
    from tvg.preparation.inspection_report import as_table, problem_lines
    from tvg.report.metrics_table import print_metrics

    stream = StringIO()
    console = Console(file=stream, width=120)
    attack = "\x1b]0;owned\x07"
    console.print(as_table(attack, []))
    _print_lines(console, problem_lines({attack: "x"}, {"v.mp4": attack}, {"q": attack}))
    print_metrics({attack: {"miou": 0.5}}, title=attack, console=console)
    assert stream.getvalue().count("owned") == 6
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", stream.getvalue())
