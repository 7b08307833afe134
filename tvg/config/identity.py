"""Computes the identity of a job: all settings and files that decide its result.

The identity names default run folders. It is saved in the run folder's `identity.json` and in
checkpoints. It shows whether a job continues the job of a folder or is another one.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tvg.config.contents import checkpoint_digest, file_digest, sampled_digest
from tvg.config.nodes import plain

IDENTITY_FILE = "identity.json"
_SHOWN = 3  # differing keys that an error names
_SHOWN_CHARACTERS = 60  # of a value

# Top-level keys that do not affect the result: places, loggers, machine. `compat` acts only through
# the keys that it sets. `callbacks` is in _PLACES instead, with exceptions in _DECIDING_CALLBACKS.
_ELSEWHERE = {
    "hydra", "name", "run_dir", "resume", "train", "logger", "device", "picture", "prepare", "demo",
    "compat",
}  # fmt: skip
_PLACES = (
    "callbacks.*",
    "evaluate.write_difficulty",
    "trainer.default_root_dir",
    "trainer.enable_*",
    "model.path",
    "model.create.folder",
    "prompt.folder",
    "prompt.template_file",
    "video",
    "job.*",
    "*clip.folder",
    "*timeout_s",
    "*num_workers",
    "*uint8_pixels",
    "*cache.folder",
    "*cache.checkpoint",
    "*memory_cache",
    "*video_dir",
    "*_file",
    "*world.root",
)
_DECIDING_CALLBACKS = ("callbacks.sample_filtering.*",)
_NOT_OF_TRAINING = ("data.limit_test",)
_NOT_OF_EVALUATION = ("data.batch_size", "data.shuffle", "data.limit_train", "data.use_windows")

Settings = dict[str, Any]  # dotted key -> plain value


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that decides the result of a job.

    Attributes:
        command: "train", "evaluate" and so on.
        decides: dotted config key -> plain value, or digest of a file's content.
    """

    command: str
    decides: Settings

    @property
    def digest(self) -> str:
        """Returns the hash of the identity, ten hexadecimal digits."""
        text = json.dumps([self.command, self.decides], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def as_json(self) -> dict[str, Any]:
        """Returns the content of `identity.json`."""
        return {"command": self.command, "digest": self.digest, "decides": self.decides}


def identity_of(command: str, cfg: DictConfig) -> Identity:
    """Returns the identity of the job that a config describes, without unresolvable values."""
    values = {}
    for key in map(str, cfg):
        if key in _ELSEWHERE or (key == "job" and command != "demo"):
            continue
        try:
            values[key] = plain(cfg[key])
        except OmegaConfBaseException:
            continue
    flat = dict(flattened(values))
    dropped = list(_PLACES)
    if command == "demo":
        dropped.remove("job.*")
    if command == "train":
        dropped += _NOT_OF_TRAINING
    if command == "evaluate":
        dropped += _NOT_OF_EVALUATION
        split = values.get("split")
        dropped += [f"data.limit_{name}" for name in ("val", "test") if name != split]
    decides = {
        key: value
        for key, value in flat.items()
        if not _is_any(key, dropped) or _is_any(key, _DECIDING_CALLBACKS)
    }
    decides.pop("callbacks.sample_filtering.run_dir", None)
    # Converted to JSON and back, as if read from a file: tuples become lists, NaN becomes text.
    text = json.dumps({**decides, **_contents(command, values)}, default=str)
    return Identity(command=command, decides=json.loads(text, parse_constant=str))


def flattened(values: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf; lists are leaves."""
    if not isinstance(values, Mapping) or not values:
        yield prefix, values
        return
    for key, value in values.items():
        yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))


def _is_any(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _contents(command: str, values: Mapping[str, Any]) -> Settings:
    """Returns digests of the files that a job reads, by the keys that name the files."""
    found: Settings = {}
    model, prompt = values.get("model"), values.get("prompt")
    if isinstance(model, Mapping) and model.get("path"):
        found["model.path (content)"] = checkpoint_digest(str(model["path"]))
    if isinstance(prompt, Mapping) and prompt.get("template_file"):
        found["prompt.template_file (content)"] = file_digest(str(prompt["template_file"]))
    if values.get("video"):
        found["video (content)"] = sampled_digest(str(values["video"]))
    splits = {"train": ("train", "val"), "evaluate": (str(values.get("split")),)}
    for key, node in data_sets(values):
        if node.get("world") is not None:
            continue  # generated from its settings
        wanted = [f"{split}_file" for split in splits.get(command, ("train", "val", "test"))]
        if node.get("annotation_file") and command == "evaluate":
            wanted = []
        for name in (*wanted, "annotation_file"):
            if node.get(name):
                found[f"{key}.{name} (content)"] = file_digest(str(node[name]))
    return found


def data_sets(values: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns (key, node) of every data set in a config; a mixture has several."""
    data = values.get("data")
    if not isinstance(data, Mapping):
        return []
    sets = data.get("sets")
    if isinstance(sets, Mapping):
        return [(f"data.sets.{k}", node) for k, node in sets.items() if isinstance(node, Mapping)]
    return [("data", data)]


def read_identity(folder: Path) -> Identity | None:
    """Reads the identity from a run folder's `identity.json`; None if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / IDENTITY_FILE
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Identity(command=str(held["command"]), decides=dict(held["decides"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not the identity of a run: {error!r}") from error


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, may_change: Callable[[str], bool]
) -> str:
    """Returns the keys whose values differ, as `seed was 0, is 1`; an empty text if none do."""
    keys = [
        key
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not may_change(key)
    ]
    # Keys that both have come first, and `_target_` before others, as these explain the most.
    keys.sort(key=lambda key: (not (key in before and key in now), not key.endswith("_target_")))
    told = [f"{k} was {_short(before.get(k))}, is {_short(now.get(k))}" for k in keys[:_SHOWN]]
    if len(keys) > _SHOWN:
        told.append(f"and {len(keys) - _SHOWN} more")
    return "; ".join(told)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
