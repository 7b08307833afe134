"""Tests that a wheel contains the configs, and that its commands work outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

import tvg
from tvg.config import CONF_DIR

PROJECT = Path(__file__).parents[2]
BUILD = """
import sys

import setuptools.build_meta as backend

folder = sys.argv[1]  # the backend overwrites sys.argv
backend.build_sdist(folder)
backend.build_wheel(folder)
"""


def test_package_data_includes_every_config():
    package = Path(tvg.__file__).parent
    assert (package / "conf").resolve() == CONF_DIR
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {f for glob in settings["package-data"]["tvg"] for f in package.glob(glob)}
    configs = {
        package / "conf" / f.relative_to(CONF_DIR) for f in CONF_DIR.rglob("*") if f.is_file()
    }
    assert configs
    assert configs <= shipped


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Path:
    """Installs the wheel in an environment without the repository; returns its bin folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("tvg", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    dist = folder / "dist"
    dist.mkdir()
    run([sys.executable, "-c", BUILD, str(dist)], source)
    assert len(list(dist.glob("*.tar.gz"))) == 1
    (wheel,) = dist.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    run([sys.executable, "-m", "pip", "--python", str(python), *install], folder)
    (packages,) = (folder / "env" / "lib").glob("python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "env" / "bin"


def run(words: list[str], folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        words,
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_of_the_wheel_run_outside_the_repository(commands, tmp_path, tiny_world):
    python = commands / "python"
    where = run([str(python), "-c", "import tvg.config; print(tvg.config.CONF_DIR)"], tmp_path)
    assert where.startswith(str(commands.parent))
    world = [
        f"data.world.root={tiny_world}",
        "data.world.num_clips={train:6,val:3,test:3}",
        "data.world.num_workers=0",
        "logger=[]",
    ]
    small = ["trainer=cpu", "trainer.max_steps=1", "trainer.limit_val_batches=0"]
    sft = ["objective=sft", "reward=[]", "prompt=short", "data.batch_size=2", "name=small"]
    run([str(commands / "tvg-train"), *world, *small, *sft], tmp_path)
    export = tmp_path / "runs" / "small" / "export"
    assert (export / "config.json").is_file()
    trained = f"model.path={export}"
    run([str(commands / "tvg-evaluate"), *world, trained, "rollout.max_new_tokens=4"], tmp_path)
    assert len(list(tmp_path.glob("runs/*/metrics.json"))) == 1
    video = sorted((tiny_world / "videos").iterdir())[0]
    words = [trained, f"video={video}", "query=the ball, then", "picture=p.png"]
    run([str(commands / "tvg-predict"), *words, "rollout.max_new_tokens=4"], tmp_path)
    assert (tmp_path / "p.png").is_file()
