"""Finding and opening the files of a dataset, with errors that name them."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

EXTENSIONS = ("mp4", "mkv", "webm", "avi", "mov", "m4v")  # of videos, tried in this order


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
                A file of exactly this name comes first, whatever its extension.
        """
        return self.find_all([video])[video]

    def find_all(self, videos: Iterable[str]) -> dict[str, Path | None]:
        """Returns the file of each video of one annotation file, or None.

        A file whose name differs in case is taken only where no other of the videos is called
        exactly so: "abc" must not be shown ABC.mp4, the file of "ABC".
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
        if "/" not in video and video not in ("", ".", ".."):  # a name alone, as in most lists
            return self._find_in([self.folder], _composed(video))
        stated = PurePosixPath(_composed(video))
        # A folder has to be named as it is on the disk; as the list has it, it may be composed.
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
            except OSError:  # a folder of somebody else's disk
                return None
        return self._listings[folder]


class _Listing:
    """The names in one folder: one listing beats four questions a video on a network disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = sorted(os.listdir(folder))
        # Ids may differ in nothing but case (those of YouTube do): the exact stem goes first.
        self._exact = {_lower_extension(_composed(name)): name for name in names}
        self._any_case = {name.lower(): self._exact[name] for name in self._exact}

    def exact(self, names: Sequence[str]) -> Path | None:
        """Returns the file of the first name that is there; the first is the stated one."""
        return self._first(names, _lower_extension, self._exact)

    def any_case(self, names: Sequence[str]) -> Path | None:
        """Returns the file of the first name that is there in any case."""
        return self._first(names, str.lower, self._any_case)

    def _first(
        self, names: Sequence[str], key_of: Callable[[str], str], listed: dict[str, str]
    ) -> Path | None:
        for place, name in enumerate(names):
            found = listed.get(key_of(name))
            if found is not None:
                path = self.folder / found
                # The stated name may be an id, and a folder may be called like a video's id.
                if place > 0 or name in names[1:] or path.is_file():
                    return path
        return None


def _composed(name: str) -> str:
    """Returns the form in which an e with its accent is one character.

    Files written on a Mac hold two in their names; lists of them mostly one.
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _decomposed(path: PurePosixPath) -> PurePosixPath:
    return PurePosixPath(unicodedata.normalize("NFD", str(path)))


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
    data = load_json(path)
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
    data = load_json(path)
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
    is_empty, name = True, str(path)
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            text = line.strip()
            if text:
                is_empty = False
                yield number, _parse(f"{name}: line {number}", text, is_line=True)
    if is_empty:
        raise ValueError(f"{path}: the annotation file is empty; expected one JSON object a line")


def load_json(path: Path) -> Any:
    """Returns what is in a JSON file.

    Raises:
        ValueError: the file cannot be read, is empty or no JSON; the message names it.
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
        raise ValueError(f"{where}: the key {error} stands twice in one JSON object") from None
    except RecursionError:
        raise ValueError(f"{where}: expected annotations, got JSON nested too deeply") from None
    except ValueError as error:  # Python reads no whole number of thousands of digits
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


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # one for all lines: it costs to make


def shown(value: Any) -> str:
    """Returns a value's type and its beginning, for an error message."""
    try:
        text = repr(value)
    except RecursionError:
        text = "nested deeply"
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
