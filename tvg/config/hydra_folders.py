"""Creates new job folders before Hydra does, and removes folders that stay empty."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tvg.config import resolvers
from tvg.core.launched import is_first_rank

_MULTIRUN_FILE = "multirun.yaml"
_made: list[Path] = []  # folders made by this process's command, innermost first


class JobFolders(Callback):
    """Creates each run folder for one run only, and removes folders that stay empty.

    If two runs get the same name from the clock, the name of the later run ends in `_2`.
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


def remove_unused() -> None:
    """Removes folders that were created for this command and are empty."""
    if _made and [path.name for path in _made[0].glob("*")] == [_MULTIRUN_FILE]:
        (_made[0] / _MULTIRUN_FILE).unlink()
    remove_empty(_made)
    _made.clear()


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes the empty ones of `folders`, in the given order (innermost first)."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _make(config: DictConfig, mode: str) -> None:
    """Creates the folder of a run or sweep; chooses another name if the clock's name is taken."""
    _made.clear()
    if not is_first_rank():
        return
    while True:
        try:
            folder = Path(str(config.hydra[mode].dir))
        except OmegaConfBaseException:  # Hydra raises it, too; here it would only warn
            return
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            resolvers.next_run_name()
            if Path(str(config.hydra[mode].dir)) == folder:  # the name was given by the user
                return
        except OSError:  # Hydra raises it, too
            return
        else:
            _made.extend(missing)
            return
