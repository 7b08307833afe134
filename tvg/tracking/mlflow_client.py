"""An MLflow client whose writes never raise: failed writes are kept and sent again."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from tvg.core import interruption
from tvg.core.text_files import write_text
from tvg.tracking.mlflow_store import problem_of, quiet

UNSENT_FILE = "mlflow_unsent.jsonl"
_PROBE_S = 1.0  # longest wait of a step for a locked sqlite store; MLflow would wait for 20 s
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0
_LARGEST_SHARE = 0.1  # largest share of a run's time spent on failing attempts
_END_PATIENCE_S, _FAILED_PATIENCE_S = 60.0, 10.0  # longest wait for the store when a run ends
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Write:
    """One MlflowClient call that changes the run, with JSON-serialisable arguments."""

    call: str
    arguments: dict[str, Any]  # without the run's ID, which may change when the run is resumed


class ResendingClient:
    """Wraps an MlflowClient; writes to the run that fail are kept and sent again.

    Failed writes are kept in `file`, one JSON object per line, and sent in order before the next
    write. The pause between attempts grows from 5 s to 60 s, and is at least ten times as long as
    the failed attempt. Waiting writes are also sent at the end of the run and when the run is
    resumed. Each write keeps the time and step at which it was logged. The stores keep one row per
    metric, time, step and value, so a write that is sent twice appears once.

    Args:
        client: the MlflowClient.
        run_id: ID of the run to write to.
        database: file of an sqlite store, used to detect quickly that the store is locked or
            missing; None for other stores.
        file: file of the waiting writes; writes that a killed run left in it are sent first.
    """

    def __init__(self, client: Any, *, run_id: str, database: Path | None, file: Path) -> None:
        self._client = client
        self._run_id = run_id
        self._database = database
        self._file = file
        self._waiting = _read(file)
        self._pause_s = _FIRST_PAUSE_S
        self._next_try_s = 0.0
        self._has_warned = False
        self._is_open = True  # according to the last attempt
        if self._waiting:
            self._send_waiting()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # private names, such as those that copy and pickle look up
            raise AttributeError(name)
        return getattr(self._client, name)

    @property
    def num_waiting(self) -> int:
        """Number of writes that are still to be sent."""
        return len(self._waiting)

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Any] = (),
        params: Sequence[Any] = (),
        tags: Sequence[Any] = (),
        synchronous: bool | None = None,
    ) -> None:
        self._write(
            "log_batch",
            metrics=[[m.key, m.value, m.timestamp, m.step] for m in metrics],
            params=[[p.key, p.value] for p in params],
            tags=[[t.key, t.value] for t in tags],
        )

    def log_param(self, run_id: str, key: str, value: Any) -> None:
        self._write("log_param", key=key, value=str(value))

    def set_tag(self, run_id: str, key: str, value: Any) -> None:
        self._write("set_tag", key=key, value=str(value))

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        path = str(Path(local_path).absolute())
        self._write("log_artifact", local_path=path, artifact_path=artifact_path)

    def log_table(self, run_id: str, data: dict[str, list[Any]], artifact_file: str) -> None:
        """Logs a table; unlike MlflowClient, replaces a table of the same name."""
        self._write("log_table", data=data, artifact_file=artifact_file)

    def set_terminated(
        self, run_id: str, status: str | None = None, end_time: int | None = None
    ) -> None:
        """Ends the run and waits for a limited time until the remaining writes are sent."""
        end_time = end_time or int(time.time() * 1000)
        self._write("set_terminated", status=status, end_time=end_time)
        # A scheduler that sends SIGTERM kills the process about half a minute later.
        may_wait = status in (None, "FINISHED") and interruption.pending() is None
        self._drain(_END_PATIENCE_S if may_wait else _FAILED_PATIENCE_S)
        if self._waiting:
            rank_zero_warn(
                f"MLflow: {len(self._waiting)} writes of this run could not be sent and are kept "
                f"in {self._file}; run the same command with resume=true to send them"
            )

    def _write(self, call: str, **arguments: Any) -> None:
        write = Write(call=call, arguments=arguments)
        is_time = time.monotonic() >= self._next_try_s
        if (self._waiting and not (is_time and self._send_waiting())) or not self._try(write):
            self._keep(write)

    def _keep(self, write: Write) -> None:
        self._waiting.append(write)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8", newline="\n") as file:
                file.write(_line(write))
        except OSError as error:  # the write still waits in memory
            log.warning("cannot write %s: %s", self._file, error)

    def _send_waiting(self) -> bool:
        """Sends the waiting writes in order; returns True if none is left.

        If a write fails although the store answers (e.g. an artifact on a full disk), the following
        writes are still sent.
        """
        number = len(self._waiting)
        failed: list[Write] = []
        while self._waiting:
            if self._try(self._waiting[0]):
                self._waiting.pop(0)
            elif self._answers():
                failed.append(self._waiting.pop(0))
            else:
                break
        self._waiting[:0] = failed
        if len(self._waiting) < number:
            try:
                self._rewrite_file()
            except OSError as error:  # after a kill, writes are sent again, which is harmless
                log.warning("cannot write %s: %s", self._file, error)
        if self._waiting:
            return False
        log.info("MLflow: sent %d queued writes", number)
        self._pause_s, self._has_warned = _FIRST_PAUSE_S, False
        return True

    def _rewrite_file(self) -> None:
        if self._waiting:
            write_text(self._file, "".join(map(_line, self._waiting)))
        else:
            self._file.unlink(missing_ok=True)

    def _drain(self, patience_s: float) -> None:
        end_s = time.monotonic() + patience_s
        while self._waiting and not self._send_waiting() and time.monotonic() < end_s:
            if self._database is not None and not self._database.exists():
                return
            time.sleep(1.0)

    def _answers(self) -> bool:
        """Returns whether the store answers, which means that only the write failed."""
        if not self._is_open:  # a request would wait for the lock of another process
            return False
        try:
            with quiet(level=logging.CRITICAL):
                self._client.get_run(self._run_id)
        except Exception:
            return False
        return True

    def _try(self, write: Write) -> bool:
        """Sends a write; returns False if it has to be sent again."""
        begin_s = time.monotonic()
        problem = None if self._database is None else problem_of(self._database, wait_s=_PROBE_S)
        self._is_open = problem is None
        if problem is None:
            try:
                with quiet(level=logging.CRITICAL):
                    _send(self._client, self._run_id, write)
                return True
            except Exception as error:  # any library may raise here
                problem = f"{error}".strip().split("\n")[0] or type(error).__name__
                if _is_refused(error, write):
                    rank_zero_warn(f"MLflow refuses the call {write.call}: {problem}")
                    return True
        now_s = time.monotonic()
        pause_s = max(self._pause_s, (now_s - begin_s) / _LARGEST_SHARE)
        self._next_try_s = now_s + pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        if not self._has_warned:
            self._has_warned = True
            store = self._database or "the tracking server"
            rank_zero_warn(
                f"MLflow: {store} cannot be written ({problem}); the run continues, and its writes "
                f"are kept in {self._file}"
            )
        return False


def _send(client: Any, run_id: str, write: Write) -> None:
    if write.call == "log_batch":
        from mlflow.entities import Metric, Param, RunTag

        values = write.arguments
        client.log_batch(
            run_id,
            metrics=[Metric(*metric) for metric in values["metrics"]],
            params=[Param(*param) for param in values["params"]],
            tags=[RunTag(*tag) for tag in values["tags"]],
        )
    elif write.call == "log_table":
        _replace_table(client, run_id, write.arguments["data"], write.arguments["artifact_file"])
    else:
        getattr(client, write.call)(run_id, **write.arguments)


def _replace_table(client: Any, run_id: str, columns: dict[str, list[Any]], file: str) -> None:
    folder = file.rpartition("/")[0]
    if any(known.path == file for known in client.list_artifacts(run_id, folder or None)):
        # The same encoding as MlflowClient.log_table, which would append to the file.
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        table = {"columns": list(columns), "data": rows}
        client.log_text(run_id, json.dumps(table, ensure_ascii=False), file)
    else:
        client.log_table(run_id, columns, file)


def _is_refused(error: Exception, write: Write) -> bool:
    """Returns whether every later attempt of this write would fail, too."""
    if write.call == "log_artifact" and not Path(write.arguments["local_path"]).exists():
        return True
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"


def _line(write: Write) -> str:
    return json.dumps(asdict(write), default=str) + "\n"


def _read(file: Path) -> list[Write]:
    """Reads the writes left by an earlier run, except the end of that run, which now continues."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    writes = []
    for line in lines:
        try:
            write = Write(**json.loads(line))
        except (ValueError, TypeError):  # cut off when the run was killed
            continue
        if write.call != "set_terminated":
            writes.append(write)
    return writes
