"""Tests of finding videos by id or path, and of reading JSON with errors that name the file."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from tvg.data.files import VideoFinder, load_json_lines, load_json_list

EXTENSIONS = ("mp4", "mkv", "webm", "avi")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "part").mkdir(parents=True)
    (folder / "h").mkdir()  # a folder with the name of a video
    names = ("aB.mp4", "Ab.mp4", "c.MKV", "d.e.webm", "f.avi", "f.mkv", "part/g.mp4", "h.mp4")
    for name in (*names, "i.flv", "i.flv.mp4", "k"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("video", "file"),
    [
        ("aB", "aB.mp4"),
        ("Ab", "Ab.mp4"),  # two videos whose ids differ only in case
        ("c", "c.MKV"),
        ("C", "c.MKV"),
        ("d.e", "d.e.webm"),
        ("f", "f.mkv"),  # mkv comes before avi
        ("f.avi", "f.avi"),  # the stated extension has priority
        ("f.mp4", "f.mkv"),  # another download of the same video
        ("part/g.mp4", "part/g.mp4"),
        ("part/g", "part/g.mp4"),
        ("./elsewhere/clips/f.avi", "f.avi"),  # a path on another disk: found by its name
        ("/elsewhere/c.mkv", "c.MKV"),
        ("g.mp4", None),  # subfolders are searched only if the path names them
        ("d", None),
        ("i.flv", "i.flv"),  # an exact file name may have any extension
        ("far/I.FLV", "i.flv"),
        ("i", None),
        ("k", "k"),
        ("h", "h.mp4"),
        ("part", None),
        ("none", None),
        ("elsewhere/none.mp4", None),
    ],
)
def test_a_video_is_found_by_id_or_path(folder: Path, video: str, file: str | None) -> None:
    expected = None if file is None else folder / file
    assert VideoFinder(folder, EXTENSIONS).find(video) == expected


def test_a_path_has_priority_over_its_file_name(folder: Path) -> None:
    (folder / "g.mp4").touch()
    assert VideoFinder(folder, EXTENSIONS).find("part/g.mp4") == folder / "part" / "g.mp4"
    absolute = folder / "part" / "g.mp4"
    assert VideoFinder(folder, EXTENSIONS).find(str(absolute)) == absolute


def test_the_error_lists_the_names_tried(folder: Path) -> None:
    finder = VideoFinder(folder, EXTENSIONS)
    assert finder.looked_for("./far/x.mp4") == f"{folder}/x.{{mp4,mkv,webm,avi}}"


def test_the_error_keeps_an_unusual_extension(folder: Path) -> None:
    finder = VideoFinder(folder, ("mp4", "mkv"))
    assert finder.looked_for("x.rm") == f"{folder}/x.rm and {folder}/x.rm.{{mp4,mkv}}"


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("stated", ["NFC", "NFD"])
def test_both_unicode_forms_of_accents_are_found(
    tmp_path: Path, on_disk: Literal["NFC", "NFD"], stated: Literal["NFC", "NFD"]
) -> None:
    name = unicodedata.normalize(on_disk, "Café/Über.mp4")
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
    (tmp_path / Path(name).name).touch()
    finder = VideoFinder(tmp_path, EXTENSIONS)
    for video in ("Café/Über.mp4", "Café/Über", "Café/über"):
        assert finder.find(unicodedata.normalize(stated, video)) == tmp_path / name
    for video in ("Über.mp4", "Über"):
        found = finder.find(unicodedata.normalize(stated, video))
        assert found == tmp_path / Path(name).name


def test_a_file_belongs_to_the_id_with_its_case(folder: Path) -> None:
    finder = VideoFinder(folder, EXTENSIONS)
    found = finder.find_all(["C", "c", "part/G", "F"])
    assert found == {
        "C": None,
        "c": folder / "c.MKV",
        "part/G": folder / "part" / "g.mp4",
        "F": folder / "f.mkv",
    }


def test_each_folder_is_listed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    listed: list[Path] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(Path(path)) or listdir(path))
    finder = VideoFinder(folder, EXTENSIONS)
    for video in ("part/g", "part/x", "aB", "none"):
        finder.find(video)
    assert listed == [folder, folder / "part"]


def test_json_lines_skip_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"a": 1}\r\n\n   \n[2]\n', encoding="utf-8")
    assert list(load_json_lines(path)) == [(1, {"a": 1}), (4, [2])]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty; expected one JSON object per line"),
        (" \n\n", "is empty"),
        ('{}\n{"a":\n', r"line 2: not JSON: Expecting value at column 6$"),
        ('{}\n\n{"a": 1, "a": 2}', "line 3: the key 'a' occurs twice"),
    ],
)
def test_invalid_json_lines_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem) as caught:
        list(load_json_lines(path))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "holds an empty list"),
        ('{"a": []}', "expected a JSON list of queries, got dict"),
        ("[1,\n 2", "not JSON: .* at line 2, column 3"),
    ],
)
def test_invalid_json_lists_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        load_json_list(path)
