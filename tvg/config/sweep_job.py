"""Runs a job of a sweep that needs several processes in a command of its own.

Lightning starts the other ranks of a node by running the command line again. In a sweep, each of
them would begin the complete sweep. Besides, the process group, the environment and DeepSpeed's
state of one job would remain for the next one. So each such job is a new command, without
`--multirun`. Jobs of one process, and jobs of launchers such as submitit, run as usual.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tvg.config.errors import ConfigError
from tvg.config.words import quoted
from tvg.core.interruption import Interrupted
from tvg.core.launched import is_first_rank, started_processes

_RESULT = "TVG_JOB_RESULT"  # file for the result of a job that a sweep has started
_SWEEP_FLAGS = ("-m", "--multirun")
_FLAGS_WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")


def needs_own_command(cfg: DictConfig) -> bool:
    """Returns whether the running job is part of a sweep and needs several processes.

    Raises:
        ConfigError: a launcher such as torchrun has started several processes of a sweep.
    """
    settings = HydraConfig.get()
    is_sweep = getattr(settings.mode, "name", str(settings.mode)) == "MULTIRUN"
    if not is_sweep or not str(settings.launcher["_target_"]).endswith(".BasicLauncher"):
        return False
    if started := started_processes():
        raise ConfigError(
            f"--multirun: {started} starts several processes, but one launch can run only one job: "
            "start each job by its own torchrun or srun command, or leave the start of the "
            "processes to Lightning (no torchrun or srun)"
        )
    return num_processes(cfg) > 1


def num_processes(cfg: DictConfig) -> int:
    """Returns the number of processes that Lightning will start on this node for a job."""
    trainer = cfg.get("trainer")
    if trainer is None:
        return 1
    devices = trainer.get("devices", 1)
    if devices in ("auto", -1, "-1"):
        return 1 if trainer.get("accelerator") == "cpu" else max(_num_gpus(), 1)
    if isinstance(devices, int):
        return devices
    text = str(devices)
    return int(text) if text.isdigit() else len([part for part in text.split(",") if part.strip()])


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def run_as_command(cfg: DictConfig) -> Any:
    """Runs the job of a sweep as a command and returns its result.

    SIGINT and SIGTERM are passed to the command, which then stops as usual.

    Raises:
        ConfigError: the command failed; its output tells why.
    """
    settings = HydraConfig.get()
    words = _job_words(sys.argv[1:], list(settings.overrides.task))
    words.append(f"hydra.run.dir={quoted(str(Path(settings.runtime.output_dir).absolute()))}")
    if "name" in cfg and not any(word.startswith("name=") for word in words):
        words.append(f"name={quoted(str(cfg.name))}")
    with tempfile.TemporaryDirectory(prefix="tvg_job_") as folder:
        result = Path(folder) / "result.json"
        code = _run([*_program(), *words], {**os.environ, _RESULT: str(result)})
        if code != 0:
            raise ConfigError(f"the command of this job ended with exit code {code}")
        return json.loads(result.read_text(encoding="utf-8")) if result.exists() else None


def report_result(value: Any) -> None:
    """Writes the result of a job to the file that `run_as_command` reads, if it runs this job."""
    path = os.environ.get(_RESULT)
    if path and is_first_rank() and isinstance(value, int | float):
        Path(path).write_text(json.dumps(value), encoding="utf-8")


def _program() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [sys.executable, *(["-m", spec.name] if spec is not None else [sys.argv[0]])]


def _job_words(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Returns the command line of one job: the flags of the sweep, and the job's overrides."""
    flags: list[str] = []
    given = iter(words)
    for word in given:
        if word in _FLAGS_WITH_VALUE:
            flags += [word, next(given, "")]
        elif word.startswith("-") and word not in _SWEEP_FLAGS:
            flags.append(word)
    return [*flags, *overrides]


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    # In a new session, Ctrl-C reaches only this process, which then passes it on once.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait()
    except Interrupted as stop:
        process.send_signal(stop.signum)
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
