"""Tests of atomic file and folder writes, full-disk errors and the removal of temporary files."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tvg.core import writing
from tvg.core.writing import (
    disk_errors,
    remove_leftovers,
    remove_leftovers_of_run,
    unfinished_path,
    whole_file,
    whole_folder,
)


class Stop(BaseException):
    """Like KeyboardInterrupt, not caught by `except Exception`."""


def write(path, text):
    with whole_file(path) as temporary:
        temporary.write_text(text)


def write_half(writing, name, error):
    with writing as temporary:
        (temporary / name).write_text("half")
        raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError("no"), Stop(), OSError(errno.EIO, "bad disk")])
@pytest.mark.parametrize("before", [None, "old"])
def test_failed_write_keeps_the_old_file(tmp_path, error, before):
    path = tmp_path / "a" / "file"
    if before:
        write(path, before)
    with pytest.raises(type(error)):
        write_half(whole_file(path), "", error)
    assert names(path.parent) == (["file"] if before else [])
    assert not before or path.read_text() == before


@pytest.mark.parametrize("error", [ValueError("no"), Stop()])
def test_failed_folder_write_keeps_the_old_folder(tmp_path, error):
    folder = tmp_path / "export"
    for text in ("first", "second"):
        with whole_folder(folder) as temporary:
            (temporary / "weights").write_text(text)
    with pytest.raises(type(error)):
        write_half(whole_folder(folder), "weights", error)
    assert names(tmp_path) == ["export"]
    assert (folder / "weights").read_text() == "second"


def test_old_folder_is_restored_if_the_rename_fails(tmp_path, monkeypatch):
    folder = tmp_path / "export"
    with whole_folder(folder) as temporary:
        (temporary / "weights").write_text("first")

    def fail(*_):
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(writing.os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"), whole_folder(folder):
        pass
    assert names(tmp_path) == ["export"]
    assert (folder / "weights").read_text() == "first"


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL)
def test_error_of_full_disk_names_the_target(tmp_path, error):
    with pytest.raises(OSError, match="MiB left") as caught, whole_file(tmp_path / "report.json"):
        raise error
    assert caught.value.filename == str(tmp_path / "report.json")
    assert caught.value.errno in (errno.ENOSPC, errno.EDQUOT)
    pattern = rf"the disk of {re.escape(str(tmp_path))} \(mounted at /.*\) has [\d.]+ MiB left"
    assert re.search(pattern, caught.value.strerror)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("I/O error: No space left on device (os error 28)", errno.ENOSPC),
        ("database or disk is full", errno.ENOSPC),
        ("Disk quota exceeded (os error 122)", errno.EDQUOT),
        ("File too large (os error 27)", errno.EFBIG),
    ],
)
def test_errno_is_that_of_the_text_in_the_error(tmp_path, text, number):
    with pytest.raises(OSError, match=os.strerror(number)) as caught, disk_errors(tmp_path / "f"):
        raise RuntimeError(text)
    assert caught.value.errno == number
    assert ("ulimit" in caught.value.strerror) == (number == errno.EFBIG)


def test_error_names_the_disk_that_is_full(tmp_path):
    elsewhere = tmp_path / "temporary" / "buffer"
    elsewhere.parent.mkdir()
    with pytest.raises(OSError, match="MiB left") as caught, disk_errors(tmp_path / "target"):
        raise OSError(errno.ENOSPC, "No space left on device", str(elsewhere))
    assert f"the disk of {elsewhere.parent} " in caught.value.strerror
    assert caught.value.filename == str(tmp_path / "target")


def test_errors_without_file_name_get_the_target(tmp_path):
    with pytest.raises(OSError, match="Input/output") as caught, disk_errors(tmp_path / "target"):
        raise OSError(errno.EIO, "x")
    assert caught.value.filename == str(tmp_path / "target")
    with pytest.raises(PermissionError) as refused, disk_errors(tmp_path / "target"):
        raise PermissionError(errno.EACCES, "x", str(unfinished_path(tmp_path / "target")))
    assert refused.value.filename == str(tmp_path / "target")
    with pytest.raises(FileNotFoundError) as absent, disk_errors(tmp_path / "target"):
        raise FileNotFoundError(errno.ENOENT, "x", "an_input")
    assert absent.value.filename == "an_input"
    with pytest.raises(ValueError, match=r"^mine$"), disk_errors(tmp_path / "target"):
        raise ValueError("mine")


KILLED = """
import os, sys
from pathlib import Path
from tvg.core.writing import whole_file, whole_folder
root = Path(sys.argv[1])
if sys.argv[2] == "between":  # the two renames of a folder
    os.replace = lambda *_: os._exit(9)
with whole_folder(root / "export") as folder:
    (folder / "weights").write_text("new")
    if sys.argv[2] == "writing":
        (root / "checkpoints").mkdir()
        with whole_file(root / "checkpoints" / "last.ckpt") as file:
            file.write_text("half")
            os._exit(9)
"""


def kill(root, when):
    command = [sys.executable, "-c", KILLED, str(root), when]
    assert subprocess.run(command, check=False).returncode == 9


def test_temporary_files_of_killed_run_are_removed(tmp_path):
    kill(tmp_path, "writing")
    left = [*tmp_path.glob(".export.*.tmp"), *tmp_path.glob("checkpoints/.last.ckpt.*.tmp")]
    assert len(left) == 2
    assert sorted(remove_leftovers_of_run(tmp_path)) == sorted(left)
    assert names(tmp_path) == ["checkpoints"]
    assert names(tmp_path / "checkpoints") == []


def test_folder_removed_by_a_kill_is_restored(tmp_path):
    with whole_folder(tmp_path / "export") as folder:
        (folder / "weights").write_text("old")
    kill(tmp_path, "between")
    assert not (tmp_path / "export").exists()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["export"]
    assert (tmp_path / "export" / "weights").read_text() == "old"


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_temporary_files_of_running_processes_are_kept(tmp_path):
    own = unfinished_path(Path("a.json")).name
    host = own.split(".")[-3]
    running = f".a.json.{host}.{os.getppid()}.tmp"
    elsewhere = f".a.json.elsewhere.{ended_process()}.tmp"
    others = ["a.tmp", ".hidden", f".a.{host}.tmp", "notes.123.tmp"]
    for name in (own, running, elsewhere, *others):
        (tmp_path / name).write_text("")
    assert remove_leftovers(tmp_path) == []
    gone = [f".a.{host}.{ended_process()}.tmp", f".db.{host}.{ended_process()}.tmp-journal"]
    for name in gone:
        (tmp_path / name).write_text("")
    os.utime(tmp_path / elsewhere, (0, 0))
    removed = [path.name for path in remove_leftovers(tmp_path)]
    assert removed == sorted([*gone, elsewhere])
    assert names(tmp_path) == sorted([own, running, *others])


def test_old_temporary_file_with_reused_process_id_is_removed(tmp_path):
    left = unfinished_path(tmp_path / "a.json")
    left.write_text("")
    os.utime(left, (writing._STARTED_S - 10, writing._STARTED_S - 10))
    assert remove_leftovers(tmp_path) == [left]


def test_missing_folder_has_no_temporary_files(tmp_path):
    assert remove_leftovers_of_run(tmp_path / "nowhere") == []


def test_folder_created_by_another_process_is_kept(tmp_path):
    folder = tmp_path / "world"
    with whole_folder(folder, replaces=False) as temporary:
        (temporary / "late").touch()
        folder.mkdir()
        (folder / "first").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["world", "first"]
