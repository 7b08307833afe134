"""Restores MLflow after a failed start: no run stays RUNNING, no finished run is changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvg.core.launched import is_first_rank
from tvg.tracking.mlflow_logger import RUN_FILE
from tvg.tracking.mlflow_store import database_of, problem_of

_BUSY_S = 60.0  # longest wait for a store that another process has locked
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _State:
    """State of a run in an MLflow store."""

    tracking_uri: str
    run_id: str
    status: str
    end_time: int | None


@contextmanager
def state_kept(run_dir: Path, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Restores the MLflow run of a folder if a start fails before training begins.

    If this start created the run, its status becomes FAILED.

    Args:
        run_dir: folder of the run.
        has_begun: returns whether training has begun; afterwards, nothing is restored.
    """
    if not is_first_rank():
        yield
        return
    before = _state(run_dir)
    try:
        yield
    except BaseException:
        if not has_begun():
            now = _state(run_dir)
            if now is not None:
                is_same = before is not None and before.run_id == now.run_id
                _set(before if is_same and before is not None else None, now)
        raise


def _state(run_dir: Path) -> _State | None:
    """Returns the state of a folder's MLflow run; None if the state cannot be determined."""
    path = run_dir / RUN_FILE
    if not path.is_file():
        return None
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        uri, run_id = str(held["tracking_uri"]), str(held["run_id"])
        database = database_of(uri)
        if database is not None and problem_of(database, wait_s=_BUSY_S) is not None:
            return None  # MLflow would create a missing store, and try a broken one ten times
        info = _client(uri).get_run(run_id).info
    except (ValueError, TypeError, KeyError, OSError, MlflowException, SQLAlchemyError):
        return None  # the error is reported when the logger is built
    return _State(tracking_uri=uri, run_id=run_id, status=info.status, end_time=info.end_time)


def _set(before: _State | None, now: _State) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client = _client(now.tracking_uri)
        if before is None or before.status == "RUNNING":
            client.set_terminated(now.run_id, status="FAILED")
        else:
            client.set_terminated(now.run_id, status=before.status, end_time=before.end_time)
    except (OSError, MlflowException) as error:
        log.warning("MLflow run %s could not be restored: %s", now.run_id, error)


def _client(tracking_uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)
