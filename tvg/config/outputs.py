"""Checks before a command starts that none of its outputs replaces an input."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tvg.config.errors import ConfigError
from tvg.config.identity import IDENTITY_FILE, data_sets, flattened

_SQLITE = "sqlite:///"
_OF_CHECKPOINTS = frozenset({".json", ".safetensors", ".bin", ".jinja", ".yaml", ".txt", ".model"})
_ALWAYS = (IDENTITY_FILE, "config.yaml", "run.json", "mlflow_run.json")
# Files and folders that commands write into run_dir; a name without suffix is a folder.
WRITTEN: Mapping[str, tuple[str, ...]] = {
    "train": (
        *_ALWAYS, "train.log", "rollouts.jsonl", "reward_health.txt", "export", "checkpoints",
        "filtering", "pictures", "csv", "tensorboard", "tiny", "validation.json",
        "mlflow_unsent.jsonl",
    ),
    "evaluate": (
        *_ALWAYS, "evaluate.log", "metrics.json", "predictions.jsonl", "predictions.partial.jsonl"
    ),
    "predict": (IDENTITY_FILE, "predict.log"),
    "prepare": (*_ALWAYS, "prepare.log"),
    "demo": (
        *_ALWAYS, "demo.log", "results.json", "unfinished.json", "sft", "grpo", "eval_sft",
        "eval_grpo", "pictures",
    ),
}  # fmt: skip


class Place(NamedTuple):
    """A file or folder, and the key that names it."""

    key: str
    path: Path


class Folder(NamedTuple):
    """A folder that a command reads."""

    key: str
    path: Path
    suffixes: frozenset[str]  # suffixes of the input files in it
    is_deep: bool  # whether files in subfolders are inputs, too


def check_outputs(command: str, values: Mapping[str, Any]) -> None:
    """Refuses outputs that would replace an input, a file of an input folder, or another output.

    The check follows symbolic and hard links and `..`, and works on case-insensitive disks.

    Args:
        command: "train", "evaluate", "predict", "prepare" or "demo".
        values: the resolved config.

    Raises:
        ConfigError: one line for each problem, beginning with the key.
    """
    outputs = list(_outputs(command, values))
    files, folders = list(_input_files(values)), list(_input_folders(values))
    problems = [p for output in outputs for p in _clashes(output, files, folders)]
    problems += [
        f"run_dir: {values['run_dir']} is {folder.key}: choose another run_dir"
        for folder in folders
        if same_file(Path(str(values["run_dir"])), folder.path)
    ]
    for number, one in enumerate(outputs):
        problems += [
            f"{other.key}: {other.path} is also the output of {one.key}: choose another name"
            for other in outputs[number + 1 :]
            if one.key != other.key and same_file(one.path, other.path)
        ]
    problems = problems or list(_foreign_files(command, values))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def same_file(one: Path, other: Path) -> bool:
    """Returns whether two paths are the same file, or would be once they are written."""
    try:
        if one.exists() and other.exists():
            return os.path.samefile(one, other)
        return one.resolve() == other.resolve()
    except (OSError, RuntimeError):  # a loop of links; opening the file reports it
        return False


def _outputs(command: str, values: Mapping[str, Any]) -> Iterator[Place]:
    """Yields every file and folder that a command writes."""
    run_dir = Path(str(values["run_dir"]))
    yield from (Place("run_dir", run_dir / name) for name in WRITTEN[command])
    yield from single_files(command, values)
    for name, node in (values.get("logger") or {}).items():
        uri = node.get("tracking_uri") if isinstance(node, Mapping) else None
        if isinstance(uri, str) and uri.startswith(_SQLITE):
            path = Path(uri.removeprefix(_SQLITE)).expanduser()
            yield Place(f"logger.{name}.tracking_uri", path)


def single_files(command: str, values: Mapping[str, Any]) -> Iterator[Place]:
    """Yields the files whose paths are set by a config key, such as `picture`."""
    run_dir = Path(str(values["run_dir"]))
    if command == "predict" and values.get("picture"):
        picture = Path(str(values["picture"]))
        yield from (Place("picture", picture), Place("picture", picture.with_suffix(".json")))
    if command == "prepare":
        named = {"report": "report.json", "overview": "overview.png"}
        for name, default in named.items():
            given = (values.get("prepare") or {}).get(name)
            if given is not None or values.get("logger"):
                path = Path(str(given)) if given is not None else run_dir / default
                yield Place(f"prepare.{name}", path)
    if command == "evaluate" and (values.get("evaluate") or {}).get("write_difficulty"):
        path = Path(str(values["evaluate"]["write_difficulty"]))
        yield Place("evaluate.write_difficulty", path)


def _input_files(values: Mapping[str, Any]) -> Iterator[Place]:
    for key, node in data_sets(values):
        for name in ("train_file", "val_file", "test_file", "annotation_file"):
            if node.get(name):
                yield Place(f"{key}.{name}", Path(str(node[name])))
    if values.get("video"):
        yield Place("video", Path(str(values["video"])))
    for key, value in flattened(values.get("prompt") or {}, "prompt"):
        if key.endswith("template_file") and value:
            yield Place(key, Path(str(value)))


def _input_folders(values: Mapping[str, Any]) -> Iterator[Folder]:
    model = values.get("model")
    if isinstance(model, Mapping) and model.get("path"):
        yield Folder("model.path", Path(str(model["path"])), _OF_CHECKPOINTS, False)
    for key, node in data_sets(values):
        if node.get("video_dir"):
            suffixes = frozenset(str(suffix).lower() for suffix in node.get("extensions") or ())
            yield Folder(f"{key}.video_dir", Path(str(node["video_dir"])), suffixes, True)


def _clashes(output: Place, files: Iterable[Place], folders: Iterable[Folder]) -> Iterator[str]:
    key, path = output
    for name, given in files:
        if same_file(path, given) or _is_inside(given, path):
            yield f"{key}: {path} would replace {name} ({given}): choose another place"
    for folder in folders:
        if same_file(path, folder.path) or _is_inside(folder.path, path):
            yield f"{key}: {path} would replace {folder.key} ({folder.path}): choose another place"
        elif path.is_file() and _is_file_of(path, folder):
            yield (
                f"{key}: {path} would replace a file of {folder.key} ({folder.path}): choose "
                "another place"
            )


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return folder.resolve() in path.resolve().parents
    except (OSError, RuntimeError):
        return False


def _is_file_of(path: Path, folder: Folder) -> bool:
    """Returns whether an existing file is an input in a folder, directly or through a link."""
    try:
        if path.resolve().suffix.lower() in folder.suffixes:
            is_child = path.resolve().parent == folder.path.resolve()
            if is_child or (folder.is_deep and _is_inside(path, folder.path)):
                return True
        status = path.stat()
        if status.st_nlink < 2:
            return False
        with os.scandir(folder.path) as entries:
            return any(os.path.samestat(status, entry.stat()) for entry in entries)
    except (OSError, RuntimeError):
        return False


def _foreign_files(command: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Reports JSON outputs that exist already and were not written by the same command."""
    if command == "predict" and values.get("picture"):
        path = Path(str(values["picture"])).with_suffix(".json")
        if path.is_file() and not _is_json_with(path, {"query", "segment", "text"}):
            yield (
                f"picture: {path}, the prediction's JSON file, exists with other content: choose "
                "another name"
            )
    report = (values.get("prepare") or {}).get("report") if command == "prepare" else None
    if report is not None:
        path = Path(str(report))
        if path.is_file() and not _is_json_with(path, {"dataset", "splits"}):
            yield f"prepare.report: {path} exists and is not a report: choose another name"


def _is_json_with(path: Path, keys: set[str]) -> bool:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and keys <= held.keys()
