"""Reads and writes the YAML record of a checkpoint, `tvg.yaml`.

A checkpoint may not be trusted, so its record contains only plain values. Tags and aliases are
refused, and `${...}` is text. Records that would take long to read are refused, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tvg.config.errors import ConfigError

RECORD_FILE = "tvg.yaml"
MAX_BYTES = 256 * 1024  # a record has about 1 KB
MAX_DEPTH = 8
MAX_NODES = 1000


def read_record(path: Path) -> dict[str, Any]:
    """Reads the values of a record: dicts, lists, texts, numbers, booleans and None.

    Raises:
        ConfigError: the file is not a valid record; the message names the file.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(f"{path}: has {size:,} bytes; a record has at most {MAX_BYTES:,}")
    try:
        text = path.read_text(encoding="utf-8")
        _check_events(path, text)
        record = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as a record ({reason})") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(record).__name__}")
    _check_values(path, record, "")
    return record


def _check_events(path: Path, text: str) -> None:
    """Refuses YAML features that no record uses, before any value is built."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        line = f"{path}, line {event.start_mark.line + 1}"
        if depth > MAX_DEPTH:
            raise ConfigError(f"{line}: nested more than {MAX_DEPTH} levels deep")
        if number > MAX_NODES:
            raise ConfigError(f"{line}: a record has at most {MAX_NODES} values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ConfigError(f"{line}: a record must not contain anchors or aliases")
        if getattr(event, "tag", None) is not None:
            raise ConfigError(f"{line}: a record must not contain tags, got {event.tag!r}")


def _check_values(path: Path, value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ConfigError(
                    f"{path}: expected names as keys of {key or 'the record'}, got {name!r}"
                )
            _check_values(path, inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_values(path, inner, f"{key}.{index}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{path}: {key}: expected a finite number, got {value}")
    elif not (value is None or isinstance(value, str | bool | int)):
        raise ConfigError(f"{path}: {key}: expected a plain value, got {value!r}")


def write_record(record: Mapping[str, Any]) -> str:
    """Returns a record as YAML that `read_record` accepts."""
    text: str = yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True, width=100)
    return text
