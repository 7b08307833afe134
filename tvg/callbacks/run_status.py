"""Sets the status of MLflow runs: finished, failed or killed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch.loggers import Logger, MLFlowLogger

from tvg.core.interruption import Interrupted

log = logging.getLogger(__name__)


def end_runs(loggers: Sequence[Logger], status: str) -> None:
    """Ends the MLflow runs of these loggers as KILLED or FAILED; a store that is gone is no error.

    Args:
        loggers: of a trainer or a command; those of other kinds are passed over.
        status: a name of `mlflow.entities.RunStatus`.
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
    """Leaves no MLflow run in state RUNNING: KILLED after a signal, FAILED after an error."""
    try:
        yield
    except Interrupted:
        end_runs(loggers, "KILLED")
        raise
    except BaseException:
        end_runs(loggers, "FAILED")
        raise
