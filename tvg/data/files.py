"""Finding and opening the files of a dataset, with errors that name them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TextIO


class VideoFinder:
    """Finds videos by id or by path; each folder is listed once.

    Raises:
        ValueError: the folder cannot be listed.
    """

    def __init__(self, video_dir: str | os.PathLike[str], extensions: Sequence[str]) -> None:
        self.folder = Path(video_dir)
        self.extensions = [extension.lower().lstrip(".") for extension in extensions]
        try:
            self._listings = {self.folder: _Listing(self.folder)}
        except OSError as error:
            raise ValueError(
                f"{self.folder}: cannot be listed ({error.strerror}); expected the folder of videos"
            ) from None

    def find(self, video: str) -> Path | None:
        """Returns the file of a video, or None.

        Args:
            video: an id, or a path that is tried as it stands (relative to the folder of videos),
                then by its file name alone: published lists hold paths of other people's disks.
                Its extension, where it has one, is tried before the others.
        """
        stated = PurePosixPath(video)
        folders = [self.folder / stated.parent] if len(stated.parts) > 1 else []
        for folder in dict.fromkeys([*folders, self.folder]):
            listing = self._listing(folder)
            found = listing.find(list(self._names(stated.name))) if listing is not None else None
            if found is not None:
                return found
        return None

    def looked_for(self, video: str) -> str:
        """Names the files that `find` tries, for an error message."""
        stem = self._stem(PurePosixPath(video).name)
        return f"{self.folder / stem}.{{{','.join(self.extensions)}}}"

    def _stem(self, name: str) -> str:
        stem, _, extension = name.rpartition(".")
        return stem if stem and extension.lower() in self.extensions else name

    def _names(self, name: str) -> Iterator[str]:
        if self._stem(name) != name:
            yield name
        for stem in dict.fromkeys([name, self._stem(name)]):
            for extension in self.extensions:
                yield f"{stem}.{extension}"

    def _listing(self, folder: Path) -> _Listing | None:
        if folder not in self._listings:
            try:
                self._listings[folder] = _Listing(folder)
            except OSError:  # a folder of somebody else's disk
                return None
        return self._listings[folder]


class _Listing:
    """The names in one folder: one listing beats four questions a video on a network disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = sorted(os.listdir(folder))
        # Ids may differ in nothing but case (those of YouTube do): the exact stem goes first.
        self._exact = {_lower_extension(name): name for name in names}
        self._any_case = {name.lower(): name for name in names}

    def find(self, names: Sequence[str]) -> Path | None:
        for name in names:
            if _lower_extension(name) in self._exact:
                return self.folder / self._exact[_lower_extension(name)]
        for name in names:
            if name.lower() in self._any_case:
                return self.folder / self._any_case[name.lower()]
        return None


def _lower_extension(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return stem + dot + extension.lower()


@contextmanager
def open_text(path: Path, expected: str = "a JSON text") -> Iterator[TextIO]:
    """Opens an annotation file; what goes wrong while it is read becomes a ValueError naming it."""
    try:
        # utf-8-sig: editors of some systems put a byte order mark first.
        with path.open(encoding="utf-8-sig") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected {expected}, got binary data") from None


def load_json_object(path: Path) -> dict[str, Any]:
    """Returns the non-empty JSON object in a file.

    Raises:
        ValueError: anything else; the message names the file.
    """
    data = _load_json(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object of video ids, got {shown(data)}")
    if not data:
        raise ValueError(f"{path}: the annotation file holds no video id")
    return data


def load_json_list(path: Path) -> list[Any]:
    """Returns the non-empty JSON list in a file.

    Raises:
        ValueError: anything else; the message names the file.
    """
    data = _load_json(path)
    if not isinstance(data, list):
        raise ValueError(f"{path}: expected a JSON list of queries, got {shown(data)}")
    if not data:
        raise ValueError(f"{path}: the annotation file holds an empty list")
    return data


def load_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the number (from 1) and the content of each line of a JSONL file; blank ones not.

    Raises:
        ValueError: the file cannot be read, is empty or a line is no JSON; names file and line.
    """
    is_empty = True
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                is_empty = False
                yield number, _parse(f"{path}: line {number}", line.strip(), is_line=True)
    if is_empty:
        raise ValueError(f"{path}: the annotation file is empty; expected one JSON object a line")


def _load_json(path: Path) -> Any:
    with open_text(path) as file:
        text = file.read()
    if not text.strip():
        raise ValueError(f"{path}: the annotation file is empty; expected JSON")
    return _parse(str(path), text)


def _parse(where: str, text: str, *, is_line: bool = False) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = "" if is_line else f"line {error.lineno}, "
        raise ValueError(f"{where}: not JSON: {error.msg} at {line}column {error.colno}") from None
    except _KeyStandsTwiceError as error:
        raise ValueError(f"{where}: the key {error} stands twice in one JSON object") from None


class _KeyStandsTwiceError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _KeyStandsTwiceError(repr(twice))
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # one for all lines: it costs to make


def shown(value: Any) -> str:
    """Returns a value's type and its beginning, for an error message."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
