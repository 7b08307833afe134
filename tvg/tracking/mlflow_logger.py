"""The MLflow logger: one MLflow run per run folder, continued when the folder is resumed."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from tvg.core.launched import is_first_rank
from tvg.core.text_files import write_json
from tvg.tracking.mlflow_client import UNSENT_FILE, ResendingClient
from tvg.tracking.mlflow_internals import with_context_tags
from tvg.tracking.mlflow_store import (
    SQLITE,
    database_of,
    make_store,
    quiet,
    store_error,
    store_lock,
)

RUN_FILE = "mlflow_run.json"
_PARENT_TAG = "mlflow.parentRunId"  # mlflow.utils.mlflow_tags: importing it takes seconds
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}


class RunLogger(MLFlowLogger):
    """Lightning's MLFlowLogger for an existing run, with a client whose writes never raise.

    Args:
        experiment_name: name of the run's experiment.
        experiment_id: ID of that experiment.
        tracking_uri: URI of the store.
        run_id: ID of the run.
        client: client that writes to the run.
    """

    def __init__(
        self,
        *,
        experiment_name: str,
        experiment_id: str,
        tracking_uri: str,
        run_id: str,
        client: ResendingClient,
    ) -> None:
        super().__init__(experiment_name=experiment_name, tracking_uri=tracking_uri, run_id=run_id)
        self._ids = (experiment_id, run_id)
        self._resending = client

    @property
    def experiment(self) -> Any:
        """The client that writes to the run."""
        return self._resending

    @property
    def experiment_id(self) -> str:
        return self._ids[0]

    @property
    def run_id(self) -> str:
        return self._ids[1]

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Ends the run and sends the writes that are still waiting.

        Args:
            status: Lightning's status, or a name of `mlflow.entities.RunStatus`.
        """
        self._resending.set_terminated(self.run_id, _STATUS.get(status, status.upper()))


def _experiment_id(client: Any, name: str, database: Path | None) -> str:
    """Returns the experiment's ID; creates the experiment if it is missing.

    The artifacts of an sqlite store's experiments are in a folder beside the store.
    """
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
    """Returns the ID of the folder's MLflow run; None if the run is not in this store."""
    from mlflow.exceptions import MlflowException

    try:
        run_id = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["run_id"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        rank_zero_warn(f"{run_dir / RUN_FILE} names no MLflow run: starting a new run")
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # e.g. a server that does not answer
            raise
        run = None
    if run is None or run.info.lifecycle_stage == "deleted":
        rank_zero_warn(
            f"MLflow run {run_id} of {run_dir} is not in {tracking_uri} (or was deleted there): "
            "starting a new run; earlier logs are not moved"
        )
        return None
    return str(run_id)


class SilentLogger(Logger):
    """A logger that logs nothing, for ranks other than zero."""

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def make_mlflow_logger(
    *,
    tracking_uri: str,
    experiment_name: str,
    run_name: str | None,
    run_dir: str | Path,
    parent_run_id: str | None = None,
    tags: dict[str, Any] | None = None,
) -> Logger:
    """Builds the MLflow logger for the run of a run folder.

    The run's ID is saved in `run_dir/mlflow_run.json`. If this file exists and the run is still in
    the store, the logger continues that run. A relative sqlite path is relative to the working
    folder. The artifacts of an sqlite store are in `mlartifacts` beside it. On ranks other than
    zero, no file is read or written, and the returned logger logs nothing.

    Args:
        tracking_uri: such as `sqlite:///mlflow.db` or `http://host:5000`.
        experiment_name: created if missing.
        run_name: shown in the dashboard; None: MLflow generates a name.
        run_dir: folder of the run.
        parent_run_id: ID of a sweep's run, under which the dashboard shows this run.
        tags: additional tags of the run.

    Raises:
        ValueError: the store cannot be written, is damaged or does not answer, or the experiment
            was deleted. Errors of the store while the run logs are not raised.
    """
    if not is_first_rank():  # Lightning does not yet know NODE_RANK here
        return SilentLogger()
    # A run uses no network except for its tracking server. A value set by the user has precedence.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Failed writes are sent again later; MLflow's own seven tries of two minutes are too long.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    run_dir = Path(run_dir)
    database = database_of(tracking_uri)
    if database is not None:
        tracking_uri = f"{SQLITE}{database}"
    try:
        with store_lock(database), quiet(level=logging.CRITICAL):
            if database is not None:
                make_store(database)
            client = MlflowClient(tracking_uri)
            experiment_id = _experiment_id(client, experiment_name, database)
        run_id = _known_run(client, run_dir, tracking_uri)
        if run_id is None:
            parent = {_PARENT_TAG: parent_run_id} if parent_run_id else {}
            run_id = _new_run(client, experiment_id, run_name, {**(tags or {}), **parent})
            kept = {"run_id": run_id, "experiment_id": experiment_id, "tracking_uri": tracking_uri}
            write_json(run_dir / RUN_FILE, kept)
        else:
            client.update_run(run_id, status="RUNNING")
    except (MlflowException, SQLAlchemyError) as error:
        raise store_error(str(error), database) from error
    mlflow.set_tracking_uri(tracking_uri)
    file = run_dir / UNSENT_FILE
    return RunLogger(
        experiment_name=experiment_name,
        experiment_id=experiment_id,
        tracking_uri=tracking_uri,
        run_id=run_id,
        client=ResendingClient(client, run_id=run_id, database=database, file=file),
    )


def _new_run(client: Any, experiment_id: str, run_name: str | None, tags: dict[str, Any]) -> str:
    texts = with_context_tags({name: str(value) for name, value in tags.items()})
    return str(client.create_run(experiment_id, tags=texts, run_name=run_name).info.run_id)
