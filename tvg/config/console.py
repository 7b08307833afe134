"""Keeps log lines and warnings from overwriting progress bars on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def warnings_as_log_lines() -> Iterator[None]:
    """Sends `warnings.warn` through logging, whose handler avoids progress bars."""
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)


class BarAwareHandler(logging.StreamHandler):
    """A StreamHandler that hides tqdm's bars while it writes a line."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:  # no bars are drawn
            super().emit(record)
            return
        with tqdm.tqdm.external_write_mode(file=self.stream):
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).rstrip("\n")  # warnings already end in a newline
