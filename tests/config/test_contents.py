"""Tests of file digests: a process reads a file once, and again only after a change."""

import os
from pathlib import Path

import pytest

from tvg.config.contents import checkpoint_digest, file_digest, sampled_digest


@pytest.fixture
def opened(monkeypatch):
    """Records the names of files that are opened for reading."""
    names, open_file = [], Path.open

    def spy(self, mode="r", *args, **kwargs):
        if mode.startswith("r"):
            names.append(self.name)
        return open_file(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", spy)
    return names


@pytest.mark.parametrize("digest", [file_digest, sampled_digest])
def test_unchanged_file_is_read_once(digest, tmp_path, opened):
    (tmp_path / "a.json").write_bytes(b"[1]")
    assert digest(tmp_path / "a.json") == digest(str(tmp_path / "a.json")) == "080a9ed428559ef6"
    assert opened == ["a.json"]


def test_unchanged_checkpoint_is_read_once(tmp_path, opened):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    assert checkpoint_digest(tmp_path) == checkpoint_digest(tmp_path)
    assert opened == ["config.json", "model.safetensors"]


def test_file_changed_in_place_has_another_digest(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1]")
    before = file_digest(path)
    path.write_text("[2]")
    later = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(later, later))
    assert file_digest(path) != before


def test_replaced_file_with_equal_time_has_another_digest(tmp_path):
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text("[1]")
    before, stat = file_digest(path), path.stat()
    other.write_text("[2]")
    other.replace(path)
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert file_digest(path) != before


def test_digest_notices_a_new_file(tmp_path):
    assert file_digest(tmp_path / "a.json") == "missing"
    (tmp_path / "a.json").write_text("[1]")
    assert file_digest(tmp_path / "a.json") != "missing"
