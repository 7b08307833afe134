"""Prints metrics as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tvg.core.printable import printable_line
from tvg.report.console import make_console


def metrics_table(metrics: Mapping[str, Mapping[str, Any]], *, title: str | None = None) -> Table:
    """Returns a table of metrics (rows) and policies (columns), 95 % intervals in parentheses.

    Args:
        metrics: name of the policy -> dict of `tvg.core.metrics.grounding_metrics`.
        title: shown above the table.
    """
    table = Table(
        title=title and escape(printable_line(title)), title_justify="left", header_style="bold"
    )
    table.add_column("metric", no_wrap=True)
    for name in metrics:
        table.add_column(escape(printable_line(name)), justify="right", no_wrap=True)
    names = dict.fromkeys(key for values in metrics.values() for key in values if key != "ci95")
    for name in names:
        table.add_row(escape(name), *(_cell(values, name) for values in metrics.values()))
    return table


def _cell(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if value is None:
        return "-"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    interval = values.get("ci95", {}).get(name)
    return f"{text} ({interval[0]:.3f}–{interval[1]:.3f})" if interval else text


def print_metrics(
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    title: str | None = None,
    console: Console | None = None,
) -> None:
    """Prints `metrics_table`, with a line that explains the parentheses."""
    console = console or make_console()
    console.print(metrics_table(metrics, title=title))
    if any(values.get("ci95") for values in metrics.values()):
        console.print("In parentheses: 95 % bootstrap interval over the queries.")
