"""Log lines on a terminal where progress bars are drawn."""

from __future__ import annotations

import logging
import sys


class BarAwareHandler(logging.StreamHandler):
    """A StreamHandler that takes tqdm's bars away for as long as it writes a line."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:  # nobody draws bars
            super().emit(record)
            return
        with tqdm.tqdm.external_write_mode(file=self.stream):
            super().emit(record)
