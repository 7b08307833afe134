"""Provides a decorator that turns a function yielding a file's queries into a reader."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from tvg.data.files import EXTENSIONS
from tvg.data.readers.record import Query, ReadResult
from tvg.data.readers.rules import read_queries

_OF_THE_FILE = ("path", "extensions")


class Reader(Protocol):
    """Reads one annotation file; a format may have further keyword arguments."""

    __name__: str

    def __call__(
        self,
        annotation_file: str | os.PathLike[str],
        video_dir: str | os.PathLike[str] | None,
        *,
        extensions: Sequence[str] = EXTENSIONS,
        on_missing: Literal["error", "skip"] = "error",
        clamp_ends: bool,
        drop_invalid: bool,
        **own: Any,
    ) -> ReadResult:
        """Returns the examples of a file, and counts of its defects; see `read_queries`.

        Args:
            annotation_file: the file.
            video_dir: folder of the videos; None reads only the annotations.
            extensions: extensions of video files, tried in this order, in any letter case.
            on_missing: "error" raises for videos without a file; "skip" drops their queries.
            clamp_ends: cut segments at the clip's ends, for training.
            drop_invalid: drop unusable and repeated queries, for training.
            **own: arguments of the format.

        Raises:
            ValueError: the file is missing, has another structure, or has no usable example.
        """


def _as_stated(
    queries: Callable[..., Iterator[Query]], path: Path, **arguments: Any
) -> Iterator[Query]:
    """Yields the queries; re-raises a ValueError of a user's reader as an error of tvg."""
    try:
        yield from queries(path, **arguments)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise ValueError(str(error)) from error


def annotation_reader(queries: Callable[..., Iterator[Query]]) -> Reader:
    """Decorator: turns `queries(path, *, extensions, ...)` into a `Reader` of the same name.

    The function yields the queries as the file states them, and raises a ValueError that names the
    file, the place in it and the value found. `tvg.data.readers.rules` decides which queries are
    kept or repaired. Further keyword arguments become arguments of the reader.
    """

    def read(
        annotation_file: str | os.PathLike[str],
        video_dir: str | os.PathLike[str] | None,
        *,
        extensions: Sequence[str] = EXTENSIONS,
        on_missing: Literal["error", "skip"] = "error",
        clamp_ends: bool,
        drop_invalid: bool,
        **own: Any,
    ) -> ReadResult:
        path = Path(annotation_file)
        return read_queries(
            path,
            _as_stated(queries, path, extensions=extensions, **own),
            video_dir,
            extensions=extensions,
            on_missing=on_missing,
            clamp_ends=clamp_ends,
            drop_invalid=drop_invalid,
        )

    signature = inspect.signature(read)
    asked = [
        p for name, p in inspect.signature(queries).parameters.items() if name not in _OF_THE_FILE
    ]
    common = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    functools.update_wrapper(read, queries)
    # Configs are checked against the signature, so it names the format's own arguments.
    read.__signature__ = signature.replace(parameters=[*common, *asked])  # type: ignore[attr-defined]
    return read
