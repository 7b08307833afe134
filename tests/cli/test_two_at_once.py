"""Tests of two processes with the same outputs: one is refused, and the other is not affected."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import real_commands as real

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def words(tiny_world, tiny_checkpoint):
    data = [
        "data=custom",
        "data.num_workers=0",
        f"data.video_dir={tiny_world / 'videos'}",
    ]
    evaluated = [
        *data,
        "data/cache=none",
        f"data.annotation_file={tiny_world / 'test.json'}",
        f"model.path={tiny_checkpoint}",
        "prompt=short",
        "rollout.max_new_tokens=2",
        "logger=[]",
    ]
    prepared = [
        *data,
        f"data.annotation_file={tiny_world / 'test.json'}",
        "data.cache.folder=cache",
        "prepare.num_workers=0",
        "prepare.report=report.json",
    ]
    trained = [
        *real.small_training(tiny_world, tiny_checkpoint),
        "data.num_workers=0",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "logger=csv",
        "name=one",
    ]
    return {"evaluate": evaluated, "prepare": prepared, "train": trained}


def contents(folder: Path) -> dict[str, object]:
    """Returns the files of a working directory, without values that depend on time or process."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        own = path.name in ("paused", "go_on", "run.json") or path.suffix in (".log", ".ckpt")
        if not path.is_file():
            continue
        if path.name == "metrics.csv":  # without times and memory
            lines = [line.split(",") for line in path.read_text().splitlines()]
            kept = [n for n, key in enumerate(lines[0]) if not key.startswith(("perf/", "system/"))]
            found[name] = [[line[n] for n in kept] for line in lines]
        elif path.suffix == ".json" and isinstance(read := json.loads(path.read_bytes()), dict):
            found[name] = {k: v for k, v in read.items() if k not in ("seconds", "command_line")}
        else:
            found[name] = None if own else path.read_bytes().replace(bytes(folder), b"")
    return found


CASES = [
    ("evaluate", "tvg.training.evaluation:predict_batch:1", ["run_dir=run"], "run_dir: run"),
    ("prepare", "tvg.preparation.frames:_present:1", ["run_dir=run"], "run_dir: run"),
    ("train", "tvg.jobs.train:build_module:1", [], "run_dir: runs/one"),
    ("train", "tvg.jobs.train:export_checkpoint:1", ["resume=auto"], "run_dir: runs/one"),
]


@pytest.mark.parametrize(("name", "pause", "more", "place"), CASES)
def test_one_of_two_equal_commands_is_refused(words, tmp_path, name, pause, more, place):
    alone = real.start(name, [*words[name], *more], tmp_path / "alone")
    try:
        real.run(alone)
        code, _, err = real.finish(alone)
        assert code == 0, err
    finally:
        real.kill(alone)
    both = [real.start(name, [*words[name], *more], tmp_path / "both", pause) for _ in "12"]
    refused_and_proceeding(both, tmp_path / "both", name, place)
    assert contents(tmp_path / "both") == {
        **contents(tmp_path / "alone"),
        "paused": None,
        "go_on": None,
    }


@pytest.mark.parametrize(
    ("own", "place"),
    [
        (("prepare.report=1.json", "prepare.report=2.json"), "data.cache.folder: cache"),
        (("data.cache.folder=one", "data.cache.folder=two"), "prepare.report: report.json"),
    ],
)
def test_second_prepare_with_same_cache_or_report_is_refused(words, tmp_path, own, place):
    pause = "tvg.preparation.frames:_present:1"
    both = [
        real.start(
            "prepare", [*words["prepare"], f"run_dir=run{n}", more], tmp_path / "both", pause
        )
        for n, more in enumerate(own)
    ]
    refused_and_proceeding(both, tmp_path / "both", "prepare", place)
    assert len(list((tmp_path / "both").rglob("*.safetensors"))) == 3
    reports = [p.name for p in (tmp_path / "both").glob("*.json")]
    assert len(reports) == 1
    assert not list((tmp_path / "both").rglob("*.lock"))


def refused_and_proceeding(both, folder: Path, name: str, place: str) -> None:
    """Runs both: checks that one is refused, naming the other's id, and that the other succeeds."""
    try:
        real.run(*both)
        refused = real.first_to_end(*both)
        (going,) = [process for process in both if process is not refused]
        code, _, err = real.finish(refused)
        assert code == 2, err
        lines = [line for line in err.splitlines() if line.startswith(f"tvg-{name}: ")]
        assert len(lines) == 1, err
        key, path = place.split(": ")
        in_use = rf"{path} is in use by another process \(process (\d+) on "
        found = re.match(rf"tvg-{name}: {key}: (/.*/)?{in_use}", lines[0])
        assert found, lines
        assert int(found[2]) == going.pid
        assert "Traceback" not in err
        real.until_paused(going, folder)
        (folder / "go_on").touch()
        code, _, err = real.finish(going)
        assert code == 0, err
    finally:
        for process in both:
            real.kill(process)
