"""Finding and opening the files of a dataset, with errors that name them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class VideoFinder:
    """Finds a video by id in one folder, which is listed once.

    Raises:
        ValueError: the folder cannot be listed.
    """

    def __init__(self, video_dir: str | os.PathLike[str], extensions: Sequence[str]) -> None:
        self.folder = Path(video_dir)
        self.extensions = [extension.lower().lstrip(".") for extension in extensions]
        try:
            # One listing beats asking for four names per id on a network disk.
            self._names = {name.lower(): name for name in sorted(os.listdir(self.folder))}
        except OSError as error:
            raise ValueError(
                f"{self.folder}: cannot be listed ({error.strerror}); expected the folder of videos"
            ) from None

    def find(self, video_id: str) -> Path | None:
        """Returns the file for an id, which may be a relative path and may end in an extension."""
        for name in self._candidates(video_id):
            if name in self._names:
                return self.folder / self._names[name]
            if "/" in name and (self.folder / name).is_file():
                return self.folder / name
        return None

    def looked_for(self, video_id: str) -> str:
        return f"{self.folder / video_id}.{{{','.join(self.extensions)}}}"

    def _candidates(self, video_id: str) -> Iterator[str]:
        # Exact case for paths into sub-folders, which are not listed.
        stem = video_id if "/" in video_id else video_id.lower()
        if stem.rpartition(".")[2].lower() in self.extensions:
            yield stem
        for extension in self.extensions:
            yield f"{stem}.{extension}"


def load_json_object(path: Path) -> dict[str, Any]:
    """Returns the non-empty JSON object in a file.

    Raises:
        ValueError: anything else; the message names the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a JSON text, got binary data") from None
    if not text.strip():
        raise ValueError(f"{path}: the annotation file is empty; expected JSON")
    try:
        data = json.loads(text, object_pairs_hook=lambda pairs: _object(path, pairs))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object of video ids, got {shown(data)}")
    if not data:
        raise ValueError(f"{path}: the annotation file holds no video id")
    return data


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{path}: the key {twice!r} stands twice in one JSON object")
    return result


def shown(value: Any) -> str:
    """Returns a value's type and its beginning, for an error message."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
