"""Charades-STA as first published: a text of sentences beside the csv of Charades with lengths."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from tvg.data.files import open_text, shown
from tvg.data.readers.fields import QueryIds
from tvg.data.readers.record import Query, ReadResult
from tvg.data.readers.rules import read_queries
from tvg.types import Segment

_NUMBER = r"-?\d+(?:\.\d*)?"
_LINE = re.compile(
    rf"\s*(?P<video>\S+)\s+(?P<start>{_NUMBER})\s+(?P<end>{_NUMBER})\s*##(?P<text>.*)"
)


def read_charades_txt(
    annotation_file: str | os.PathLike[str],
    video_dir: str | os.PathLike[str] | None,
    *,
    lengths_file: str | os.PathLike[str] | Sequence[str],
    extensions: Sequence[str] = ("mp4", "mkv", "webm", "avi"),
    on_missing: Literal["error", "skip"] = "error",
    clamp_ends: bool,
    drop_invalid: bool,
) -> ReadResult:
    """Reads lines `VIDEO start end##sentence.`; `lengths_file` is a csv with columns id, length.

    Several csv files may be given: one reader then serves the training and the test text. A query's
    id is "VIDEO:index", as in the JSON of the same annotations. For the rest see
    `tvg.data.readers.rules.read_queries`.

    Raises:
        ValueError: a file is missing or of another shape, a video has no length, or no example is
            left.
    """
    path = Path(annotation_file)
    files = [lengths_file] if isinstance(lengths_file, str | os.PathLike) else lengths_file
    lengths_s = {video: length_s for file in files for video, length_s in _lengths(Path(file))}
    return read_queries(
        path,
        _queries(path, lengths_s, " or ".join(str(file) for file in files)),
        video_dir,
        extensions=extensions,
        on_missing=on_missing,
        clamp_ends=clamp_ends,
        drop_invalid=drop_invalid,
    )


def _queries(path: Path, lengths_s: Mapping[str, float], lengths_name: str) -> Iterator[Query]:
    ids = QueryIds()
    with open_text(path, "lines of text") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            match = _LINE.fullmatch(line.rstrip("\r\n"))
            if match is None:
                raise ValueError(
                    f"{path}: line {number}: expected 'VIDEO start end##sentence', "
                    f"got {shown(line.strip())}"
                )
            video = match["video"]
            if video not in lengths_s:
                raise ValueError(f"{path}: line {number}: no length of {video} in {lengths_name}")
            yield Query(
                qid=ids.next(video),
                video=video,
                sentence=match["text"].strip(),
                segment=Segment(float(match["start"]), float(match["end"])),
                duration_s=lengths_s[video],
            )


def _lengths(path: Path) -> Iterator[tuple[str, float]]:
    with open_text(path, "a csv with columns id and length") as file:
        rows = csv.DictReader(file)
        if not {"id", "length"} <= set(rows.fieldnames or ()):
            raise ValueError(
                f"{path}: expected a csv with columns id and length, got {shown(rows.fieldnames)}"
            )
        for row in rows:
            stated = (row["length"] or "").strip()
            if re.fullmatch(_NUMBER, stated) is None or not float(stated) > 0:
                raise ValueError(
                    f"{path}: line {rows.line_num}: expected a positive number of seconds as "
                    f"length, got {shown(row['length'])}"
                )
            yield row["id"].strip(), float(stated)
