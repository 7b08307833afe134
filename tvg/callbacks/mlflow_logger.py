"""The MLflow logger: one run a run folder, taken up again when the folder is resumed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from tvg.task.report import write_json

RUN_FILE = "mlflow_run.json"
_SQLITE = "sqlite:///"
_LOCK_TIMEOUT_S = 180.0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the some fifty lines that making the tables of a new store logs."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _database(tracking_uri: str) -> Path | None:
    """The file of an sqlite store, absolute; None for every other store."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(tracking_uri.removeprefix(_SQLITE)).expanduser().absolute()


@contextlib.contextmanager
def _store_lock(database: Path | None) -> Iterator[None]:
    """Lets one process at a time make the store and the experiment (sqlite stores only).

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
                f"logger.tracking_uri: another process has been making {database} for "
                f"{_LOCK_TIMEOUT_S:.0f} s; remove {lock.lock_file} if there is none"
            ) from error
        except OSError as error:
            raise ValueError(f"logger.tracking_uri: cannot write {database}: {error}") from error
        yield


def _experiment_id(client: Any, name: str, database: Path | None) -> str:
    """The experiment of that name, made where it is missing, with its files beside the store."""
    known = client.get_experiment_by_name(name)
    if known is not None and known.lifecycle_stage == "deleted":
        raise ValueError(
            f"logger.experiment_name: {name!r} was deleted in this MLflow store; restore it "
            f"(mlflow experiments restore -x {known.experiment_id}) or choose another name"
        )
    if known is not None:
        return str(known.experiment_id)
    folder = re.sub(r"[^\w.-]+", "_", name)
    files = None if database is None else (database.parent / "mlartifacts" / folder).as_uri()
    return str(client.create_experiment(name, artifact_location=files))


def _known_run(client: Any, run_dir: Path, tracking_uri: str) -> str | None:
    """The run that the folder was logged to, where that still is in this store."""
    from mlflow.exceptions import MlflowException

    try:
        run_id = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["run_id"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        rank_zero_warn(f"{run_dir / RUN_FILE} names no MLflow run: starting a new one")
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # a server that does not answer, say
            raise
        run = None
    if run is None or run.info.lifecycle_stage == "deleted":
        rank_zero_warn(
            f"MLflow run {run_id} of {run_dir} is not in {tracking_uri} (or was deleted there): "
            "starting a new one; what was logged before stays where it was"
        )
        return None
    return str(run_id)


def make_mlflow_logger(
    *,
    tracking_uri: str,
    experiment_name: str,
    run_name: str | None,
    run_dir: str | Path,
    parent_run_id: str | None = None,
    tags: dict[str, Any] | None = None,
) -> Logger:
    """Builds Lightning's MLFlowLogger on the run of a run folder.

    The run's id is kept in `run_dir/mlflow_run.json`; a folder that has one continues that run
    if it is still in the store. A relative sqlite path counts from the working folder; files of
    an sqlite store lie in `mlartifacts` beside it. On ranks other than zero nothing is touched,
    and what comes back logs nothing.

    Args:
        tracking_uri: such as `sqlite:///mlflow.db` or `http://host:5000`.
        experiment_name: made where it is missing.
        run_name: shown in the dashboard; MLflow invents one where it is None.
        run_dir: folder of the run.
        parent_run_id: run of a sweep that this one is shown under.
        tags: further tags of the run.

    Raises:
        ValueError: the sqlite store cannot be written, or the experiment was deleted.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return DummyLogger()
    # A run needs no network but its own tracking server's; the user's own setting wins.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient
    from mlflow.tracking.context.registry import resolve_tags
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    run_dir = Path(run_dir)
    database = _database(tracking_uri)
    if database is not None:
        tracking_uri = f"{_SQLITE}{database}"
        if not database.exists():
            rank_zero_info(f"Making the MLflow store {database} (about ten seconds, once)")
    with _store_lock(database), _quiet():
        client = MlflowClient(tracking_uri)
        experiment_id = _experiment_id(client, experiment_name, database)
    run_id = _known_run(client, run_dir, tracking_uri)
    if run_id is None:
        parent = {MLFLOW_PARENT_RUN_ID: parent_run_id} if parent_run_id else {}
        all_tags = resolve_tags({**{k: str(v) for k, v in (tags or {}).items()}, **parent})
        run = client.create_run(experiment_id, tags=all_tags, run_name=run_name)
        run_id = run.info.run_id
        kept = {"run_id": run_id, "experiment_id": experiment_id, "tracking_uri": tracking_uri}
        write_json(run_dir / RUN_FILE, kept)
    else:
        client.update_run(run_id, status="RUNNING")
    return MLFlowLogger(experiment_name=experiment_name, tracking_uri=tracking_uri, run_id=run_id)
