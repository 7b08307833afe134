"""Commands on checkpoints that try to run code: one error, and no marker file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hostile_targets import hostile_nodes, pickle_that_writes, script_that_writes


def with_a_target(folder: Path, marker: Path) -> None:
    """A record whose parser and sampling are one of our own writers."""
    node = hostile_nodes(folder, marker)["tvg.task.report.write_text"]
    record = {"prompt": {"parser": node}, "data/loader": {"sampling": dict(node)}}
    (folder / "tvg.yaml").write_text(yaml.safe_dump(record))


def with_code(folder: Path, marker: Path) -> None:
    """A config that names code beside it."""
    script_that_writes(folder / "payload.py", marker)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "payload", "auto_map": {"AutoConfig": "payload.Payload"}}
    (folder / "config.json").write_text(json.dumps(config))


def with_a_pickle(folder: Path, marker: Path) -> None:
    """Weights that are a pickle."""
    (folder / "model.safetensors").unlink()
    pickle_that_writes(folder / "pytorch_model.bin", marker)


@pytest.mark.parametrize("name", ["predict", "evaluate", "train"])
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (with_a_target, "a record holds values of known options and names no code"),
        (with_code, "auto_map names code"),
        (with_a_pickle, "holds pickled weights only (pytorch_model.bin)"),
    ],
)
def test_a_checkpoint_runs_no_code(
    command, world, tiny_world, tiny_checkpoint, tmp_path, name, spoil, told
):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    spoil(folder, tmp_path / "marker")
    words = {
        "predict": [f"video={next((tiny_world / 'videos').iterdir())}", "query=a ball"],
        "evaluate": [*world, "logger=[]"],
        "train": [
            *(*world, "logger=[]", "trainer=cpu", "prompt=recorded"),
            "reward.format.reward.think=false",
        ],
    }[name]
    done = command(name, f"model.path={folder}", *words, f"run_dir={tmp_path / 'run'}")
    assert told in done.error
    assert done.error.count("\n") == 0
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "run" / "export").exists()
