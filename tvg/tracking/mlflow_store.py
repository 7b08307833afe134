"""Creates MLflow's sqlite store atomically, and checks that an existing store can be written."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info

from tvg.core.writing import remove_leftovers, whole_file

SQLITE = "sqlite:///"
KEY = "logger.tracking_uri"
_LOCK_TIMEOUT_S = 180.0
_BUSY_TIMEOUT_S = 60.0  # longest wait, when a run starts, for a store that is locked


@contextlib.contextmanager
def quiet(*, level: int = logging.WARNING) -> Iterator[None]:
    """Suppresses the about 50 log lines that MLflow prints when it creates a store's tables.

    Args:
        level: lowest level that is still shown; MLflow logs failed writes as errors.
    """
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, former in zip(loggers, levels, strict=True):
            logger.setLevel(former)


def database_of(tracking_uri: str) -> Path | None:
    """Returns the absolute path of an sqlite store's file; None for any other store."""
    if not tracking_uri.startswith(SQLITE):
        return None
    return Path(tracking_uri.removeprefix(SQLITE)).expanduser().absolute()


@contextlib.contextmanager
def store_lock(database: Path | None) -> Iterator[None]:
    """Lets one process at a time create the store and the experiment (sqlite stores only).

    Raises:
        ValueError: the store's folder cannot be written, or another process keeps the lock.
    """
    if database is None:
        yield
        return
    lock = FileLock(f"{database}.lock")
    with contextlib.ExitStack() as held:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock.acquire(timeout=_LOCK_TIMEOUT_S))
        except Timeout as error:
            raise ValueError(
                f"{KEY}: another process has been creating {database} for "
                f"{_LOCK_TIMEOUT_S:.0f} s; if there is no such process, remove {lock.lock_file}"
            ) from error
        except OSError as error:
            raise ValueError(f"{KEY}: cannot write {database}: {error}") from error
        yield


def make_store(database: Path) -> None:
    """Creates a missing store in a temporary file and renames the file.

    A killed process therefore leaves no partial store. The caller has to hold the store's lock.

    Raises:
        ValueError: the store exists but is damaged or stays locked; the message says what to do.
        OSError: the disk is full or cannot be written.
    """
    remove_leftovers(database.parent)
    if database.exists() and database.stat().st_size > 0:
        problem = problem_of(database, wait_s=_BUSY_TIMEOUT_S)
        if problem is not None:
            raise store_error(problem, database)
        return
    from mlflow import MlflowClient

    rank_zero_info(f"Creating the MLflow store {database} (about ten seconds, once)")
    with whole_file(database) as temporary:
        MlflowClient(f"{SQLITE}{temporary}").search_experiments(max_results=1)


def problem_of(database: Path, *, wait_s: float) -> str | None:
    """Returns the reason why an sqlite store cannot be written; None if it can be written.

    This function never creates the file.

    Args:
        database: file of the store.
        wait_s: seconds to wait for another process to release its lock.
    """
    if not database.exists():
        return "the file is missing"
    uri = f"{database.as_uri()}?mode=rw"
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=wait_s, isolation_level=None)
        with contextlib.closing(connection):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return str(error)
    return None


def store_error(problem: str, database: Path | None) -> ValueError:
    """Builds the error for a store that a run cannot start with: the problem and what to do."""
    first = problem.strip().split("\n")[0]
    if database is None:
        return ValueError(
            f"{KEY}: the MLflow server does not answer: {first}; logger=[] runs without a server"
        )
    file = shlex.quote(str(database))
    if "locked" in first:
        return ValueError(
            f"{KEY}: another process keeps the MLflow store {database} locked ({first}): end that "
            f"process (`fuser {file}` prints its id), or choose another store"
        )
    if "disk is full" in first:
        return ValueError(
            f"{KEY}: the disk of {database} is full ({first}): free some space, or choose another "
            "store"
        )
    if "readonly" in first or "unable to open" in first:
        return ValueError(f"{KEY}: cannot write {database}: {first}")
    return ValueError(
        f"{KEY}: {database} is not a complete MLflow store ({first}): it was damaged, "
        "left incomplete by a kill, or made by another version of MLflow. In the last case, run "
        f"`mlflow db upgrade {shlex.quote(f'{SQLITE}{database}')}` after a "
        f"backup; otherwise move it away (`mv {file} {shlex.quote(f'{database}.broken')}`), "
        "and the next start creates a new store"
    )
