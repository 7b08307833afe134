"""Turns functions into commands that report user errors as one message."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import (
    HydraException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tvg.config.check import check
from tvg.config.compose import CONF_DIR, compose, help_text
from tvg.config.console import warnings_as_log_lines
from tvg.config.errors import ConfigError
from tvg.config.help import register_help
from tvg.config.hydra_folders import remove_unused
from tvg.config.hydra_internals import have_sweep
from tvg.config.resolvers import register_resolvers
from tvg.config.sweep_job import needs_own_command, report_result, run_as_command
from tvg.config.words import (
    program,
    refused_overrides,
    unreadable_value,
    with_literal_texts,
)
from tvg.core.interruption import Interrupted, handled
from tvg.core.printable import printable

_FULL_ERROR = "HYDRA_FULL_ERROR"
_SPIN_COUNT = "20000"  # some microseconds; measured in docs/DECISIONS.md
# torch's names of the same variable: the first for all versions, the second since 2.9
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_NVIDIA_FILES = ("/dev/nvidiactl", "/dev/dxg")  # exist if there is a GPU (Linux, WSL)
_OURS = "TVG_CLEAN_ERRORS"  # set if we, not the user, set HYDRA_FULL_ERROR
_HINT = f"({_FULL_ERROR}=1 shows where it was raised)"
_AGAIN = "to resume: run the same command again"
_TRAINER_KEYS = (  # keys of conf/trainer that occur in Lightning's messages
    "accelerator",
    "devices",
    "num_nodes",
    "precision",
    "max_steps",
    "max_epochs",
    "max_time",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "limit_train_batches",
    "limit_val_batches",
    "log_every_n_steps",
)
_OF_A_RESOLVER = f"{ConfigError.__name__} raised while resolving interpolation: "  # omegaconf's
_MISSING_VALUE = re.compile(r"Missing mandatory value: ([\w.]+)")


class _Refused(BaseException):
    """Carries a user message through Hydra, which would otherwise print the overrides first."""


def entry_point(
    config_name: str, *, texts: Sequence[str] = (), conf_dir: Path = CONF_DIR
) -> Callable[[Callable[[DictConfig], Any]], Callable[..., Any]]:
    """Turns a function into a command. The command calls the function with the checked config.

    The config is checked before Hydra creates any folder. In a sweep, or with flags such as
    --config-dir, it is checked when each job begins.

    User errors are printed to stderr without a traceback, and the exit code is 2. These are Hydra's
    errors about config files and overrides, every `ValueError` that `tvg` raises, and files that
    cannot be read or written. Any other error is a bug and keeps its traceback.
    `HYDRA_FULL_ERROR=1` shows every traceback.

    SIGINT, SIGTERM and SIGUSR1 stop the command at any time. It then prints the advice of
    `Interrupted` and exits with its code: 130, 143 or 138, or 0 if a training saved its last step.

    Args:
        config_name: the command's main config, e.g. "train".
        texts: keys whose values on the command line are literal text, not YAML.
        conf_dir: folder of the config files.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[..., Any]:
        return _command(function, config_name, texts=texts, conf_dir=conf_dir)

    return decorate


def _command(
    function: Callable[[DictConfig], Any],
    config_name: str,
    *,
    texts: Sequence[str],
    conf_dir: Path,
) -> Callable[..., Any]:
    register_resolvers()
    register_help()

    def command() -> Any:
        # torch's OpenMP reads these variables when it is loaded. Waiting threads then spin for some
        # microseconds, about the time between small products, and sleep afterwards. By default,
        # they keep spinning. That makes CPU training many times slower while other jobs run.
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
            os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
        _expandable_segments()
        sys.argv[1:] = with_literal_texts(sys.argv[1:], texts)
        try:
            with handled():
                return with_clean_errors()
        except Interrupted as stop:
            lines = [f"{program()}: stopped by {stop}", *(stop.advice or [_AGAIN])]
            print("\n".join(lines), file=sys.stderr)
            sys.exit(stop.exit_code)

    def with_clean_errors() -> Any:
        if os.environ.get(_FULL_ERROR) == "1" and _OURS not in os.environ:
            return run()
        # With HYDRA_FULL_ERROR=1, Hydra raises errors instead of printing them and exiting.
        before = {name: os.environ.get(name) for name in (_FULL_ERROR, _OURS)}
        os.environ.update({_FULL_ERROR: "1", _OURS: "1"})
        try:
            return run()
        except BrokenPipeError:  # as in `tvg-train --help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except _Refused as refused:
            _end_with(str(refused))
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            _end_with(message)
        except KeyboardInterrupt:
            print(f"{program()}: interrupted", file=sys.stderr)
            sys.exit(130)
        finally:
            remove_unused()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def run() -> Any:
        words = sys.argv[1:]
        overrides = _asks_for_help(words)
        if overrides is not None:
            return print(help_text(config_name, overrides, conf_dir=conf_dir))
        # With flags, or several values of a key, only Hydra can tell which configs will run.
        is_one_run = not any(word.startswith("-") for word in words) and not have_sweep(words)
        if is_one_run:
            check(compose(config_name, words, conf_dir=conf_dir))

        @functools.wraps(function)
        def job(cfg: DictConfig) -> Any:
            if not is_one_run:
                # Errors are raised: Hydra names this job and continues with the others.
                check(cfg)
                if needs_own_command(cfg):
                    return run_as_command(cfg)
                with warnings_as_log_lines():
                    return function(cfg)
            try:
                with warnings_as_log_lines():
                    result = function(cfg)
                report_result(result)
                return result
            except Exception as error:
                message = user_message(error) if _OURS in os.environ else None
                if message is None:
                    raise
                raise _Refused(message) from error

        hydra.main(version_base="1.3", config_path=str(conf_dir), config_name=config_name)(job)()

    return command


def _expandable_segments() -> None:
    """Lets torch's GPU memory allocator extend its blocks, unless the user configures it.

    Rows of tokens have another length in each step. With blocks of fixed size, the free memory is
    soon divided into pieces that are too small. torch reads the variable at its first allocation.
    """
    has_gpu = any(Path(file).exists() for file in _NVIDIA_FILES)
    if has_gpu and not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


def _end_with(message: str) -> NoReturn:
    print(f"{program()}: {printable(message)}\n{_HINT}", file=sys.stderr)
    sys.exit(2)


def _asks_for_help(words: Sequence[str]) -> list[str] | None:
    """Returns the overrides next to `--help`; None without `--help` or with other flags."""
    overrides = [word for word in words if word not in ("--help", "-h")]
    is_ours = len(overrides) < len(words) and not any(word.startswith("-") for word in overrides)
    return overrides if is_ours else None


def user_message(error: Exception) -> str | None:
    """Returns the message for the user; None if the error is a bug that needs its traceback."""
    if isinstance(error, OmegaConfBaseException) and str(error).startswith(_OF_A_RESOLVER):
        return str(error).removeprefix(_OF_A_RESOLVER).split("\n")[0]
    if isinstance(error, HydraException) and (text := refused_overrides(error)) is not None:
        return text
    if isinstance(error, YAMLError):
        return str(error)  # names file, line and column
    if isinstance(error, OmegaConfBaseException) and not _passed_through_us(error):
        if (found := _MISSING_VALUE.search(str(error))) is not None:
            return f"{found.group(1)}: a value is needed ({found.group(1)}=...)"
        return str(error).replace("\n    full_key: ", ", at ").split("\n")[0]
    if isinstance(error, OverrideParseException) and "=" in (error.override or ""):
        return unreadable_value(error)
    if isinstance(error, HydraException):
        text = re.split(r"\n\s*Config search path:", str(error))[0].strip()
        cause = str(error.__cause__ or "").split("\n    full_key")[0]
        return f"{text}\n{cause}" if cause and cause not in text else text
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError) and _raised_by_us(error):
        return str(error)
    if _is_refused_by_lightning(error):
        return _with_trainer_key(str(error))
    # For an error in a worker whose class needs more than a message (VideoError), torch raises a
    # RuntimeError.
    return _raised_in_worker(str(error)) if isinstance(error, ValueError | RuntimeError) else None


def _raised_by_us(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    names = frames[-1][0].f_globals
    # With `python -m tvg.cli.prepare`, the module's name is __main__; __spec__ has the full name.
    name = getattr(names.get("__spec__"), "name", None) or names.get("__name__", "")
    return str(name).startswith("tvg.")


def _is_refused_by_lightning(error: BaseException) -> bool:
    """Returns whether Lightning refused a setting, without importing the class of its error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    is_theirs = module.startswith(("lightning.", "lightning_fabric.", "pytorch_lightning."))
    kinds = ("MisconfigurationException", "ValueError")
    return is_theirs and any(c.__name__ in kinds for c in type(error).__mro__)


def _with_trainer_key(message: str) -> str:
    """Prepends the trainer keys that a message of Lightning names."""
    text = " ".join(message.split())
    named = [word for word in re.findall(r"\b[a-z]+(?:_[a-z]+)*\b", text) if word in _TRAINER_KEYS]
    keys = ", ".join(f"trainer.{word}" for word in dict.fromkeys(named))
    return f"{keys or 'trainer'}: {text}"


def _passed_through_us(error: BaseException) -> bool:
    modules = [f.f_globals.get("__name__", "") for f, _ in traceback.walk_tb(error.__traceback__)]
    around = (__name__, "tvg.config.compose")  # these only call Hydra, with the user's config
    return any(str(name).startswith("tvg.") and name not in around for name in modules)


def _raised_in_worker(text: str) -> str | None:
    """Returns our message in an error from a data loader's worker; None for other errors."""
    if not text.startswith("Caught ") or "Original Traceback" not in text:
        return None
    frames = re.findall(r'File "([^"]+)"', text)
    ours = str(Path(__file__).parents[1])
    if not frames or not frames[-1].startswith(ours):
        return None
    after = text.rpartition(frames[-1])[2].splitlines()
    lines = [line for line in after[1:] if line and not line.startswith("    ")]
    return "\n".join(lines).partition(": ")[2] or None
