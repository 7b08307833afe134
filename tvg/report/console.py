"""The console that all commands print their tables to."""

from __future__ import annotations

from rich.console import Console

LOG_WIDTH = 160  # characters; rich assumes 80 in log files and cuts wider tables


def make_console() -> Console:
    """Returns a console as wide as the terminal, or `LOG_WIDTH` wide if there is no terminal."""
    return Console(width=None if Console().is_terminal else LOG_WIDTH)
