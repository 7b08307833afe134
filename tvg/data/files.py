"""Finds and opens the files of a dataset; errors name the file."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

EXTENSIONS = ("mp4", "mkv", "webm", "avi", "mov", "m4v")  # of video files, tried in this order


class VideoFinder:
    """Finds videos by id or by path; lists each folder only once.

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
            video: an id or a path. A path is tried relative to the video folder, then by its file
                name alone, because published lists contain paths on their authors' disks. A file of
                exactly this name has priority, whatever its extension.
        """
        return self.find_all([video])[video]

    def find_all(self, videos: Iterable[str]) -> dict[str, Path | None]:
        """Returns the file of each video of one annotation file, or None.

        A file whose name differs in case is used only if no other video has exactly that name: the
        video "abc" must not get ABC.mp4, the file of "ABC".
        """
        found = {video: self._find(video) for video in videos}
        claimed = {path for path, is_exact in found.values() if is_exact}
        return {
            video: path if is_exact or path not in claimed else None
            for video, (path, is_exact) in found.items()
        }

    def looked_for(self, video: str) -> str:
        """Names the files that `find` tries, for an error message."""
        name = PurePosixPath(video).name
        stem = self._stem(name)
        others = f"{self.folder / stem}.{{{','.join(self.extensions)}}}"
        has_other_extension = stem == name and PurePosixPath(name).suffix
        return f"{self.folder / name} and {others}" if has_other_extension else others

    def _find(self, video: str) -> tuple[Path | None, bool]:
        """Returns a video's file, and whether its name is exactly the stated one."""
        if "/" not in video and video not in ("", ".", ".."):  # a bare name, as in most lists
            return self._find_in([self.folder], _composed(video))
        stated = PurePosixPath(_composed(video))
        # Folder names must match the disk: try them as listed, composed and decomposed.
        parents = [PurePosixPath(video).parent, stated.parent, _decomposed(stated.parent)]
        folders = [self.folder / parent for parent in parents] if len(stated.parts) > 1 else []
        return self._find_in(dict.fromkeys([*folders, self.folder]), stated.name)

    def _find_in(self, folders: Iterable[Path], name: str) -> tuple[Path | None, bool]:
        names = list(self._names(name))
        for folder in folders:
            listing = self._listing(folder)
            if listing is None:
                continue
            for path, is_exact in ((listing.exact(names), True), (listing.any_case(names), False)):
                if path is not None:
                    return path, is_exact
        return None, False

    def _stem(self, name: str) -> str:
        stem, _, extension = name.rpartition(".")
        return stem if stem and extension.lower() in self.extensions else name

    def _names(self, name: str) -> Iterator[str]:
        yield name
        for stem in dict.fromkeys([name, self._stem(name)]):
            for extension in self.extensions:
                yield f"{stem}.{extension}"

    def _listing(self, folder: Path) -> _Listing | None:
        if folder not in self._listings:
            try:
                self._listings[folder] = _Listing(folder)
            except OSError:  # a folder of the authors' disk
                return None
        return self._listings[folder]


class _Listing:
    """Lists one folder once, because four lookups per video are slow on a network disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = sorted(os.listdir(folder))
        # Ids may differ only in case (as on YouTube), so the exact stem has priority.
        self._exact = {_lower_extension(_composed(name)): name for name in names}
        self._any_case = {name.lower(): self._exact[name] for name in self._exact}

    def exact(self, names: Sequence[str]) -> Path | None:
        """Returns the file of the first name that exists; the first name is the stated one."""
        return self._first(names, _lower_extension, self._exact)

    def any_case(self, names: Sequence[str]) -> Path | None:
        """Returns the file of the first name that exists in any letter case."""
        return self._first(names, str.lower, self._any_case)

    def _first(
        self, names: Sequence[str], key_of: Callable[[str], str], listed: dict[str, str]
    ) -> Path | None:
        for place, name in enumerate(names):
            found = listed.get(key_of(name))
            if found is not None:
                path = self.folder / found
                # The stated name may be an id, and a folder may have the same name.
                if place > 0 or name in names[1:] or path.is_file():
                    return path
        return None


def _composed(name: str) -> str:
    """Returns a name in NFC, in which an accented letter is one character.

    macOS writes two characters in file names, but annotation files mostly contain one.
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _decomposed(path: PurePosixPath) -> PurePosixPath:
    return PurePosixPath(unicodedata.normalize("NFD", str(path)))


def _lower_extension(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return stem + dot + extension.lower()


@contextmanager
def open_text(path: Path, expected: str = "a JSON text") -> Iterator[TextIO]:
    """Opens an annotation file; errors while reading it become a ValueError that names it."""
    try:
        # utf-8-sig: some editors write a byte order mark.
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
        ValueError: the file has other content; the message names the file.
    """
    data = load_json(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object of video ids, got {shown(data)}")
    if not data:
        raise ValueError(f"{path}: the annotation file holds no video id")
    return data


def load_json_list(path: Path) -> list[Any]:
    """Returns the non-empty JSON list in a file.

    Raises:
        ValueError: the file has other content; the message names the file.
    """
    data = load_json(path)
    if not isinstance(data, list):
        raise ValueError(f"{path}: expected a JSON list of queries, got {shown(data)}")
    if not data:
        raise ValueError(f"{path}: the annotation file holds an empty list")
    return data


def load_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the number (from 1) and content of each non-blank line of a JSONL file.

    Raises:
        ValueError: the file cannot be read or is empty, or a line is not JSON. The message names
            the file and the line.
    """
    is_empty, name = True, str(path)
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            text = line.strip()
            if text:
                is_empty = False
                yield number, _parse(f"{name}: line {number}", text, is_line=True)
    if is_empty:
        raise ValueError(f"{path}: the annotation file is empty; expected one JSON object per line")


def load_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        ValueError: the file cannot be read, is empty or is not JSON; the message names it.
    """
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
        raise ValueError(f"{where}: the key {error} occurs twice in one JSON object") from None
    except RecursionError:
        raise ValueError(f"{where}: expected annotations, got JSON nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"{where}: JSON that cannot be read: {error}") from None


class _KeyStandsTwiceError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _KeyStandsTwiceError(repr(twice))
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # shared by all lines: creating one is slow


def shown(value: Any) -> str:
    """Returns a value's type and shortened text, for an error message."""
    try:
        text = repr(value)
    except RecursionError:
        text = "nested deeply"
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
