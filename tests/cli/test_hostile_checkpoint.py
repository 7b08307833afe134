"""Tests that commands run no code of a hostile checkpoint: one error, and no marker file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from helpers.hostile_targets import hostile_nodes, pickle_that_writes, script_that_writes


def with_a_target(folder: Path, marker: Path) -> None:
    """Writes a record whose parser and sampling are targets that write a file."""
    node = hostile_nodes(folder, marker)["tvg.core.text_files.write_text"]
    record = {"prompt": {"parser": node}, "data/clip": {"sampling": dict(node)}}
    (folder / "tvg.yaml").write_text(yaml.safe_dump(record))


def with_code(folder: Path, marker: Path) -> None:
    """Writes a config.json that names a Python file in the folder."""
    script_that_writes(folder / "payload.py", marker)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "payload", "auto_map": {"AutoConfig": "payload.Payload"}}
    (folder / "config.json").write_text(json.dumps(config))


def with_a_pickle(folder: Path, marker: Path) -> None:
    """Replaces the weights by a pickle."""
    (folder / "model.safetensors").unlink()
    pickle_that_writes(folder / "pytorch_model.bin", marker)


@pytest.mark.parametrize("name", ["predict", "evaluate", "train"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_a_target, "a record must contain only values of known options, no code"),
        (with_code, "auto_map names code"),
        (with_a_pickle, "holds pickled weights only (pytorch_model.bin)"),
    ],
)
def test_hostile_checkpoint_runs_no_code(
    command, world, tiny_world, tiny_checkpoint, tmp_path, name, spoil, message
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
    assert message in done.error
    assert done.error.count("\n") == 0
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "run" / "export").exists()


def spoil_what_may_stay(folder: Path, marker: Path) -> set[str]:
    """Adds code, pickles and a record with targets to a checkpoint; returns their file names."""
    before = {path.name for path in folder.iterdir()}
    hostile_nodes(folder, marker)  # writes payload.py and payload.pt
    for name in ("modeling_payload.py", "configuration_qwen2_5_vl.py", "setup.py", "conftest.py"):
        script_that_writes(folder / name, marker)
    for name in ("pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "training_args.bin"):
        pickle_that_writes(folder / name, marker)
    (folder / "adapter").mkdir()
    script_that_writes(folder / "adapter" / "payload.py", marker)
    (folder / "payload.pth").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    node = hostile_nodes(folder, marker)["tvg.core.text_files.write_text"]
    record = {"prompt": {"parser": node, "template": "{query} ${oc.env:HOME}"}}
    (folder / "tvg.yaml").write_text(yaml.safe_dump(record))
    return {path.name for path in folder.iterdir()} - before


def test_export_contains_no_files_of_a_hostile_checkpoint(
    command, world, tiny_checkpoint, tmp_path
):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    added = spoil_what_may_stay(folder, tmp_path / "marker")
    run = tmp_path / "run"
    done = command(
        "train",
        *world,
        *("logger=[]", "trainer=cpu", "objective=sft", "reward=[]", "prompt=short"),
        *("trainer.max_steps=1", "trainer.val_check_interval=1", "data.limit_val=1"),
        *("data.batch_size=1", "trainer.enable_progress_bar=false", "rollout.max_new_tokens=2"),
        *("callbacks.timelines=null", f"model.path={folder}", f"run_dir={run}"),
    )
    assert done.code == 0, done.err
    assert not (tmp_path / "marker").exists()
    export = run / "export"
    files = [path for path in export.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {
        ".json",
        ".jinja",
        ".safetensors",
        ".yaml",
        ".sha256",
    }
    assert {path.name for path in files} & added == {"tvg.yaml"}  # written by the run
    for path in files:
        data = path.read_bytes()
        assert b"auto_map" not in data, path
        assert b"payload" not in data, path
        assert str(tmp_path / "marker").encode() not in data, path
    assert "oc.env" not in (export / "tvg.yaml").read_text()
    done = command("predict", f"model.path={export}", "query=a ball", _video(world))
    assert done.code == 0, done.err
    assert not (tmp_path / "marker").exists()


def _video(world: list[str]) -> str:
    root = next(word for word in world if word.startswith("data.world.root="))
    return f"video={next((Path(root.partition('=')[2]) / 'videos').iterdir())}"
