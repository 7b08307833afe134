"""Records the origin of a run: resolved config, source revision, versions and machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from tvg.core.text_files import write_json, write_text
from tvg.tracking.sinks import log_file, mlflow_runs, on_tensorboard

_PACKAGES = (
    "tvg",
    "torch",
    "transformers",
    "lightning",
    "deepspeed",
    "peft",
    "vllm",
    "flash-attn",
    "decord2",
    "av",
    "mlflow",
)
_MLFLOW_TAG_LENGTH = 5000
_MLFLOW_PARAM_LENGTH = 500  # accepted by every server since MLflow 1.28


def _git(*arguments: str) -> str | None:
    """Returns git's output in the folder of this source file; None if git fails or is missing."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def source_revision() -> dict[str, Any]:
    """Returns the commit of this source, and whether any file differs from it; None if unknown.

    An installed copy may be inside another repository (e.g. a virtual environment in a project),
    so only a repository that tracks this file counts.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "is_dirty": None}
    status = _git("status", "--porcelain")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "is_dirty": None if status is None else bool(status),
    }


def package_versions() -> dict[str, str | None]:
    """Returns the installed version of each package that affects results; None if missing."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def machine(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns a description of the host, its processors and the GPUs that this process sees."""
    num_gpus = torch.cuda.device_count()
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(num_gpus)],
        "cuda": torch.version.cuda if num_gpus else None,
        "num_ranks": trainer.world_size,
        "num_nodes": trainer.num_nodes,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class RunRecord(Callback):
    """Writes `config.yaml` and `run.json` into the run folder and into MLflow when training begins.

    If the config of a resumed run has changed, the previous config is kept as `config.1.yaml`,
    `config.2.yaml` and so on. MLflow receives the files as artifacts, the revision and the versions
    as tags, and `summary` as params. TensorBoard receives the config as text.

    Args:
        run_dir: folder of the run.
        config_yaml: the resolved config.
        summary: a few short values that distinguish runs in the columns of a dashboard (task,
            model, data, objective, learning rate, seed).
    """

    def __init__(
        self, *, run_dir: str | Path, config_yaml: str, summary: dict[str, Any] | None
    ) -> None:
        super().__init__()
        self.run_dir = Path(run_dir)
        self.config_yaml = config_yaml
        self.summary = summary or {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        record = {
            "source": source_revision(),
            "versions": package_versions(),
            "machine": machine(trainer),
            "command": sys.argv,
            "summary": self.summary,
        }
        files = [self._write_config(), write_json(self.run_dir / "run.json", record)]
        for path in files:
            log_file(trainer, path)
        for client, run_id in mlflow_runs(trainer):
            self._set_tags(client, run_id, record)
            self._set_params(client, run_id)
        text = "\n".join("    " + line for line in self.config_yaml.splitlines())
        step = trainer.global_step
        on_tensorboard(trainer, lambda writer: writer.add_text("config", text, global_step=step))

    def _write_config(self) -> Path:
        path = self.run_dir / "config.yaml"
        if path.exists() and path.read_text(encoding="utf-8") != self.config_yaml:
            number = 1
            while (former := self.run_dir / f"config.{number}.yaml").exists():
                number += 1
            path.rename(former)
        return write_text(path, self.config_yaml)

    @staticmethod
    def _set_tags(client: Any, run_id: str, record: dict[str, Any]) -> None:
        source, versions, where = record["source"], record["versions"], record["machine"]
        tags = {
            "git.commit": source["commit"],
            "git.is_dirty": source["is_dirty"],
            "host": where["host"],
            "cpu": where["cpu"],
            "gpu": ", ".join(where["gpus"]) or None,
        }
        tags |= {f"version.{name}": version for name, version in versions.items()}
        for name, value in tags.items():
            if value is not None:
                client.set_tag(run_id, name, str(value)[:_MLFLOW_TAG_LENGTH])

    def _set_params(self, client: Any, run_id: str) -> None:
        """Logs the summary without Lightning's logger, which cuts values at 250 characters.

        MLflow cannot change a param. If a resumed run has another value, MLflow keeps the first
        value, and config.yaml has the current value.
        """
        from mlflow.exceptions import MlflowException

        try:
            known = client.get_run(run_id).data.params
        except MlflowException:  # store missing or locked: the client keeps the writes
            known = {}
        for name, value in self.summary.items():
            text = str(value)[:_MLFLOW_PARAM_LENGTH]
            if name not in known:
                client.log_param(run_id, name, text)
            elif known[name] != text:
                rank_zero_warn(
                    f"this run continues with {name}={text}; MLflow keeps showing its first "
                    f"value, {known[name]}"
                )
