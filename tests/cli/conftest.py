"""Fixtures that run commands in the test process, which saves seconds of imports per command."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TextIO

import pytest


@dataclass(frozen=True, kw_only=True)
class Done:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str
    name: str

    @property
    def error(self) -> str:
        """Checks that the command failed with one message for users, and returns the message."""
        assert self.code == 2, self.err
        assert "Traceback" not in self.err + self.out
        begins = [n for n, line in enumerate(self.lines) if line.startswith(f"{self.name}: ")]
        assert len(begins) == 1, self.err
        assert self.lines[-1] == "(HYDRA_FULL_ERROR=1 shows where it was raised)"
        return "\n".join(self.lines[begins[0] : -1]).removeprefix(f"{self.name}: ")

    @property
    def lines(self) -> list[str]:
        return self.err.rstrip().splitlines()


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """Returns a function that runs `tvg-<name>` with arguments in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    environment = dict(os.environ)

    def run(name: str, *words: str) -> Done:
        monkeypatch.setattr(sys, "argv", [f"tvg-{name}", *words])
        capsys.readouterr()
        _point_handlers_to(sys.stderr)
        code = 0
        try:
            import_module(f"tvg.cli.{name}").main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Done(code=code, out=out, err=err, name=f"tvg-{name}")

    yield run
    _point_handlers_to(sys.__stderr__)
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], root.level = before
    os.environ.clear()
    os.environ.update(environment)


def _point_handlers_to(stream: TextIO | None) -> None:
    """Redirects all stream handlers, because libraries keep the stderr of an earlier test."""
    for logger in list(logging.Logger.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", []):
            if type(handler) is logging.StreamHandler:
                handler.stream = stream


@pytest.fixture(scope="session")
def world(tiny_world: Path) -> list[str]:
    """Returns overrides that use the small generated data set instead of the default one."""
    return [
        "data=synthetic",
        f"data.world.root={tiny_world}",
        "data.world.num_clips={train:6,val:3,test:3}",
        "data.world.num_workers=0",
    ]
