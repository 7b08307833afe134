"""Prevents errors of loggers and reports from stopping a training run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from tvg.core.writing import disk_errors

_METHODS = (
    "log_metrics",
    "log_hyperparams",
    "log_graph",
    "save",
    "finalize",
    "after_save_checkpoint",
)


@contextlib.contextmanager
def reported_only(target: str | Path) -> Iterator[None]:
    """Turns a disk error into a warning, for files that training does not need.

    Args:
        target: file or folder that the block writes.
    """
    try:
        with disk_errors(target):
            yield
    except OSError as error:
        rank_zero_warn(f"{error.filename}: {error.strerror}; the run continues without this file")


def steady(loggers: Sequence[Logger]) -> list[Logger]:
    """Makes logging errors of these loggers a warning, at most one per logger.

    The files in the run folder are complete without the loggers. Failed writes to MLflow are also
    sent again, see `tvg.tracking.mlflow_client`.
    """
    for logger in loggers:
        failures: list[Exception] = []
        for name in _METHODS:
            guarded = _guarded(getattr(logger, name), type(logger).__name__, failures)
            setattr(logger, name, guarded)
    return list(loggers)


def _guarded(
    method: Callable[..., Any], logger: str, failures: list[Exception]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:  # from any logging library
            if not failures:
                rank_zero_warn(f"{logger} cannot log ({error}); the run continues")
            failures.append(error)
            return None

    return call
