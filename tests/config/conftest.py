"""Fixtures with a small folder of configs, for tests that do not need the shipped configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tvg.config import compose
from tvg.config.check import find_problems

FILES = {
    "train.yaml": """
defaults:
  - _self_
  - model: small
  - data: a
  - reward: [iou]
  - logger: [one]
  - experiment: null
seed: 0
run_dir: runs/x
""",
    "model/small.yaml": "_target_: textwrap.TextWrapper\nwidth: 4\n",
    "model/big.yaml": "_target_: textwrap.TextWrapper\nwidth: 8\n",
    "model/bare.yaml": "width: 8\n",
    "data/a.yaml": "_target_: textwrap.TextWrapper\nwidth: 4\n",
    "reward/iou.yaml": "iou: {weight: 1.0, reward: {_target_: tvg.reward.iou.IoUReward}}\n",
    "reward/extra.yaml": "extra: {weight: 1.0, reward: {_target_: tvg.reward.iou.IoUReward}}\n",
    "logger/one.yaml": "one:\n  _target_: calendar.TextCalendar\n",
    "logger/two.yaml": "two:\n  _target_: calendar.TextCalendar\n",
}


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    for name, text in FILES.items():
        write(folder / name, text)
    return folder


@pytest.fixture
def problems_of(conf_dir: Path) -> Callable[..., list[str]]:
    """Returns a function that lists the problems of the small config with an experiment file."""

    def find(experiment: str = "", *overrides: str) -> list[str]:
        chosen = list(overrides)
        if experiment:
            write(conf_dir / "experiment/e.yaml", f"# @package _global_\n{experiment}")
            chosen.append("experiment=e")
        return find_problems(compose("train", chosen, conf_dir=conf_dir))

    return find


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
