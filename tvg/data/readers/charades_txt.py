"""Reads the original Charades-STA release: a text file of sentences and a csv of lengths."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tvg.data.files import open_text, shown
from tvg.data.readers.fields import NUMBER, QueryIds, as_number
from tvg.data.readers.reader import annotation_reader
from tvg.data.readers.record import Query
from tvg.types import Segment

_LINE = re.compile(
    rf"\s*(?P<video>\S+)\s+(?P<start>{NUMBER})\s+(?P<end>{NUMBER})\s*##(?P<text>.*)", re.ASCII
)


@annotation_reader
def read_charades_txt(
    path: Path,
    *,
    extensions: Sequence[str],
    lengths_file: str | os.PathLike[str] | Sequence[str],
) -> Iterator[Query]:
    """Reads lines `VIDEO start end##sentence.`; `lengths_file` is a csv with columns id, length.

    Several csv files may be given, so that one reader serves the training and test files. A query's
    id is "VIDEO:index", as in the JSON of the same annotations.

    Raises:
        ValueError: a file is missing or has another format, a video has no length, or no example is
            usable.
    """
    files = [lengths_file] if isinstance(lengths_file, str | os.PathLike) else lengths_file
    lengths = {video: length for file in files for video, length in _lengths(Path(file))}
    return _queries(path, lengths, " or ".join(str(file) for file in files))


def _queries(
    path: Path, lengths: Mapping[str, tuple[str, str]], lengths_name: str
) -> Iterator[Query]:
    ids = QueryIds()
    with open_text(path, "lines of text") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            match = _LINE.fullmatch(line.rstrip("\r\n"))
            start_s = as_number(match["start"]) if match is not None else None
            end_s = as_number(match["end"]) if match is not None else None
            if match is None or start_s is None or end_s is None:
                raise ValueError(
                    f"{path}: line {number}: expected 'VIDEO start end##sentence', "
                    f"got {shown(line.strip())}"
                )
            video = match["video"]
            if video not in lengths:
                raise ValueError(f"{path}: line {number}: no length of {video} in {lengths_name}")
            yield Query(
                qid=ids.next(video),
                video=video,
                sentence=match["text"].strip(),
                segment=Segment(start_s, end_s),
                duration_s=_length_s(*lengths[video]),
            )


def _lengths(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yields each video with the place of its row and its length as text.

    Lengths are parsed only when a query needs them, so unused rows may have no length.
    """
    with open_text(path, "a csv with columns id and length") as file:
        rows = csv.DictReader(file)
        if not {"id", "length"} <= set(rows.fieldnames or ()):
            raise ValueError(
                f"{path}: expected a csv with columns id and length, got {shown(rows.fieldnames)}"
            )
        for row in rows:
            place = f"{path}: line {rows.line_num}"
            yield (row["id"] or "").strip(), (place, (row["length"] or "").strip())


def _length_s(where: str, stated: str) -> float:
    length_s = as_number(stated)
    if length_s is None or length_s <= 0:
        raise ValueError(
            f"{where}: expected a positive number of seconds as length, got {shown(stated)}"
        )
    return length_s
