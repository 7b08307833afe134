"""Sets the status of MLflow runs: finished, failed or killed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch.loggers import Logger, MLFlowLogger

from tvg.core.interruption import Interrupted

log = logging.getLogger(__name__)


def end_runs(loggers: Sequence[Logger], status: str) -> None:
    """Ends the loggers' MLflow runs with `status`; a missing store only causes a warning.

    Args:
        loggers: loggers of a trainer or a command; other kinds of loggers are ignored.
        status: a name of `mlflow.entities.RunStatus`, such as KILLED or FAILED.
    """
    for logger in loggers:
        if not isinstance(logger, MLFlowLogger) or logger.run_id is None:
            continue
        from mlflow.exceptions import MlflowException

        try:
            logger.experiment.set_terminated(logger.run_id, status)
        except (MlflowException, OSError) as error:  # the command is ending already
            log.warning("MLflow run %s could not be ended as %s: %s", logger.run_id, status, error)


@contextmanager
def ending_runs(loggers: Sequence[Logger]) -> Iterator[None]:
    """Ends the MLflow runs as KILLED after a signal and as FAILED after an error."""
    try:
        yield
    except Interrupted:
        end_runs(loggers, "KILLED")
        raise
    except BaseException:
        end_runs(loggers, "FAILED")
        raise
