"""Tests of checkpoint files: damage is detected, and a full disk does not stop the run."""

import errno
import io
import os
import random
import resource
import tempfile
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tvg.training.checkpoint import LAST, AtomicCheckpointIO
from tvg.training.checkpoint_file import ChecksumWriter

WHOLE = {
    "state_dict": {"weight": torch.arange(200.0), "bias": torch.ones(3)},
    "optimizer_states": [],
    "lr_schedulers": [],
    "loops": {},
    "global_step": 7,
}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / LAST
    AtomicCheckpointIO().save_checkpoint(WHOLE, path)
    return path


def load(path):
    return AtomicCheckpointIO().load_checkpoint(path, weights_only=True)


def test_a_checkpoint_loads_with_and_without_our_code(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(saved)["global_step"] == 7
    plain = torch.load(saved, weights_only=True, mmap=True)
    assert torch.equal(plain["state_dict"]["weight"], torch.arange(200.0))
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"tvg sha256 ")


@pytest.mark.filterwarnings("error")
def test_a_flipped_bit_is_found(saved):
    good = saved.read_bytes()
    draws = random.Random(0)
    ends = [*range(60), *range(len(good) - 120, len(good))]
    for place in ends + draws.sample(range(len(good)), 200):
        bad = bytearray(good)
        bad[place] ^= 1 << draws.randrange(8)
        saved.write_bytes(bad)
        with pytest.raises(ValueError, match=rf"^{saved}: "):
            load(saved)
    saved.write_bytes(good)
    assert load(saved)["global_step"] == 7


@pytest.mark.parametrize("kept", [0, 1, 21, 500, -1, -75, -97])
def test_truncated_checkpoint_is_refused(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"^{saved}: (is empty|is truncated|does not match)"):
        load(saved)


def test_an_appended_byte_is_found(saved):
    with saved.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=rf"^{saved}: is truncated or damaged"):
        load(saved)


def test_a_checkpoint_without_checksum_loads_with_a_warning(tmp_path):
    torch.save(WHOLE, tmp_path / LAST)
    with pytest.warns(UserWarning, match=f"{LAST} has no checksum"):
        assert load(tmp_path / LAST)["global_step"] == 7


@pytest.mark.filterwarnings("ignore:.*has no checksum")
@pytest.mark.parametrize("key", ["state_dict", "optimizer_states", "loops"])
def test_checkpoint_without_a_required_key_is_refused(tmp_path, key):
    path = tmp_path / LAST
    torch.save({name: value for name, value in WHOLE.items() if name != key}, path)
    with pytest.raises(ValueError, match=rf"^{path}: is not a training checkpoint: no {key};"):
        load(path)


@pytest.mark.filterwarnings("ignore:.*has no checksum")
@pytest.mark.parametrize("content", [b"PK\5\6" + bytes(18), b"x" * 100 + b"PK\5\6" + bytes(18)])
def test_unreadable_checkpoint_gives_a_one_line_error(tmp_path, content):
    path = tmp_path / LAST
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: cannot be read \(") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_checkpoint_with_a_pickled_object_is_refused(tmp_path):
    path = tmp_path / LAST
    AtomicCheckpointIO().save_checkpoint(WHOLE | {"loops": zipfile.ZipInfo("x")}, path)
    with pytest.raises(ValueError, match=rf"^{path}: cannot be read \("):
        load(path)


@pytest.mark.parametrize("sizes", [[1] * 50, [21, 22, 23, 100, 3], [5, 64, 22], [22]])
def test_checksum_does_not_depend_on_the_size_of_writes(sizes):
    archive = b"".join(os.urandom(size) for size in sizes)[:-22] + b"PK\5\6" + bytes(18)
    one, many = io.BytesIO(), io.BytesIO()
    whole, pieces = ChecksumWriter(one), ChecksumWriter(many)
    whole.write(archive)
    rest = archive
    for size in sizes:
        pieces.write(rest[:size])
        rest = rest[size:]
    whole.finish()
    pieces.finish()
    assert one.getvalue() == many.getvalue()


def test_saving_needs_no_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    io_plugin = AtomicCheckpointIO()
    io_plugin.save_checkpoint(WHOLE, tmp_path / LAST)
    assert io_plugin.failure is None
    assert load(tmp_path / LAST)["global_step"] == 7


def test_saving_keeps_no_second_copy_in_memory(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the complete checkpoint would be copied in memory")

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", refuse)
    largest = []
    write = ChecksumWriter.write
    monkeypatch.setattr(
        ChecksumWriter,
        "write",
        lambda self, data: largest.append(len(memoryview(data).cast("B"))) or write(self, data),
    )
    tensors = {str(n): torch.zeros(10_000) for n in range(20)}
    AtomicCheckpointIO().save_checkpoint(WHOLE | {"state_dict": tensors}, tmp_path / LAST)
    assert max(largest) <= 40_000


@contextmanager
def file_size_limit(num_bytes):
    """Limits the size of files; larger writes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = WHOLE | {"state_dict": {"weight": torch.zeros(100_000)}, "global_step": 8}


def test_a_refused_write_keeps_the_former_checkpoint(saved):
    io_plugin = AtomicCheckpointIO()
    with (
        file_size_limit(100_000),
        pytest.warns(UserWarning, match=f"no checkpoint was saved: {saved}: File too large"),
    ):
        io_plugin.save_checkpoint(LARGE, saved)
    assert io_plugin.failure.errno == errno.EFBIG
    assert os.listdir(saved.parent) == [LAST]
    assert load(saved)["global_step"] == 7
    io_plugin.save_checkpoint(LARGE, saved)
    assert io_plugin.failure is None
    assert load(saved)["global_step"] == 8


def test_a_full_disk_is_named_with_the_target(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ChecksumWriter, "write", full)
    io_plugin = AtomicCheckpointIO()
    with pytest.warns(UserWarning, match="there is none yet"):
        io_plugin.save_checkpoint(WHOLE, tmp_path / LAST)
    assert io_plugin.failure.filename == str(tmp_path / LAST)
    assert f"the disk of {tmp_path} (mounted at /" in io_plugin.failure.strerror
    assert "MiB left" in io_plugin.failure.strerror
    assert os.listdir(tmp_path) == []
    assert Path(io_plugin.failure.filename).name == LAST
