"""Hydra makes the folder of every job before it starts: ours is new, and leaves with its job."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tvg.config import resolvers

_MULTIRUN_FILE = "multirun.yaml"
# The first one set counts. SLURM sets its own in every shell that it opens; there Lightning starts
# the other ranks with LOCAL_RANK.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_made: list[Path] = []  # by this process's command, innermost first


class JobFolders(Callback):
    """Makes run folders exclusively, and removes those that nothing was written into.

    Of two runs whose names the clock gives in one second, the later one's ends in `_2`.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _make(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _make(config, "sweep")

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        remove_unused()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if str(config.hydra.mode).endswith("MULTIRUN"):
            remove_empty([Path(str(config.hydra.runtime.output_dir))])

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        remove_unused()


def is_first_rank() -> bool:
    """Whether this process is the one of a job that owns its run folder."""
    name = next((name for name in _RANKS if name in os.environ), "LOCAL_RANK")
    node = os.environ.get("NODE_RANK", "0") if name == "LOCAL_RANK" else "0"
    return os.environ.get(name, "0") == "0" and node == "0"


def remove_unused() -> None:
    """Removes the folders that were made for this command, as far as nothing is in them."""
    if _made and [path.name for path in _made[0].glob("*")] == [_MULTIRUN_FILE]:
        (_made[0] / _MULTIRUN_FILE).unlink()
    remove_empty(_made)
    _made.clear()


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, innermost first, as far as nothing is in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _make(config: DictConfig, mode: str) -> None:
    """Makes the folder of a run or sweep, under another name where the clock's is taken."""
    _made.clear()
    if not is_first_rank():
        return
    while True:
        try:
            folder = Path(str(config.hydra[mode].dir))
        except OmegaConfBaseException:  # Hydra meets it, too, and warns of it if raised here
            return
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            resolvers.next_run_name()
            if Path(str(config.hydra[mode].dir)) == folder:  # a name that was given
                return
        except OSError:  # Hydra meets it, too, and says so
            return
        else:
            _made.extend(missing)
            return
