"""Tests that loading a checkpoint's record never calls a target, at any key of the record."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers.hostile_targets import hostile_nodes

from tvg.config import compose
from tvg.recorded import record_text, recorded_loader, recorded_prompt

PLACES = (
    "prompt",
    "prompt.parser",
    "prompt.template",
    "prompt.system",
    "prompt.think",
    "prompt.prefill",
    "data/clip",
    "data/clip.sampling",
    "data/clip.sampling.fps",
    "data/clip.timeout_s",
    "model",
)
TEXTS = {"prompt.template", "prompt.system", "prompt.prefill"}


@pytest.fixture(scope="module")
def record() -> str:
    return record_text(compose("train", ["prompt=short"]).cfg)


@pytest.mark.parametrize("place", PLACES)
def test_no_target_in_a_record_is_called(tmp_path, record, place, monkeypatch):
    marker = tmp_path / "marker"
    files = tmp_path / "files"
    files.mkdir()
    nodes = hostile_nodes(files, marker)
    assert len(nodes) >= 30
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    for name, node in nodes.items():
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        _write(folder / "tvg.yaml", record, place, node)
        if isinstance(node, str) and place in TEXTS - {"prompt.template"}:
            task = _read(folder)
            assert getattr(task, place.partition(".")[2]) == node, name  # kept as text
        else:
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                _read(folder)
            message = str(caught.value)
            assert message.startswith(f"{folder}/tvg.yaml"), name
            assert "\n" not in message, name
        assert not marker.exists(), name
        assert sorted(files.iterdir()) == before, name


def _write(path: Path, record: str, place: str, node: object) -> None:
    values = yaml.safe_load(record)
    *parents, leaf = place.split(".")
    parent = values
    for key in parents:
        parent = parent[key]
    parent[leaf] = node
    path.write_text(yaml.safe_dump(values))


def _read(folder: Path) -> object:
    settings = dict.fromkeys(
        (
            *("system", "video_first", "lowercase", "strip_period"),
            *("parser", "prefill", "frame_times", "query_blanks", "rate_any_numbers"),
            "strict_answer",
        ),
        "recorded",
    )
    task = recorded_prompt(folder=str(folder), fallback="think", **settings)
    recorded_loader(folder=str(folder), fallback="qwen", timeout_s="recorded")
    return task
