"""Tests that cache entries are read back exactly or refused; keys cover all settings of a clip."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tvg.data.cache.errors import CorruptEntry, UnusableStore
from tvg.data.cache.frames import FrameCache
from tvg.data.cache.key import EDGE_BYTES, entry_key, file_identity
from tvg.data.cache.store import EntryStore
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoError
from tvg.data.video.pyav_decoder import PyAVDecoder, PyAVVideo
from tvg.data.video.sampling import FrameSampling
from tvg.types import LeadIn, Segment, VideoClip

KEY = "ab" + "0" * 38
SMALL = FrameSampling(min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28, max_frames=8)


class CountingDecoder(PyAVDecoder):
    """Counts how often a video is opened."""

    num_opened = 0

    @contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[PyAVVideo]:
        self.num_opened += 1
        with super().open(path) as video:
            yield video


@pytest.fixture
def loader() -> ClipLoader:
    return ClipLoader(sampling=SMALL, decoder=CountingDecoder(num_threads=1), timeout_s=None)


@pytest.fixture
def cache(tmp_path: Path, loader: ClipLoader) -> FrameCache:
    return FrameCache(folder=tmp_path / "cache", loader=loader)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixels": torch.randint(256, (3, 5, 7), dtype=torch.uint8, generator=generator),
        "times": torch.rand(3, dtype=torch.float64, generator=generator),
        "features": torch.rand(2, 3, generator=generator).bfloat16(),
    }


def assert_same(found: VideoClip, expected: VideoClip) -> None:
    assert found.frames.dtype == expected.frames.dtype == torch.uint8
    assert torch.equal(found.frames, expected.frames)
    assert found.frame_times_s.dtype == expected.frame_times_s.dtype
    assert torch.equal(found.frame_times_s, expected.frame_times_s)
    assert (found.sampled_fps, found.duration_s) == (expected.sampled_fps, expected.duration_s)


def test_an_entry_is_read_back_unchanged(tmp_path: Path) -> None:
    store = EntryStore(tmp_path / "store")
    assert store.read(KEY) is None
    assert not store.verify(KEY)
    written = store.write(KEY, tensors(), {"a": "1", "Ω": '"quoted" \\ {}'})
    assert written == store.path(KEY) == tmp_path / "store" / "ab" / f"{KEY}.safetensors"
    entry = store.read(KEY)
    assert entry is not None
    assert entry.meta == {"a": "1", "Ω": '"quoted" \\ {}'}
    assert entry.tensors.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert entry.tensors[name].dtype == tensor.dtype
        assert torch.equal(entry.tensors[name], tensor)
    assert store.verify(KEY)
    assert list(store.stored_keys()) == [KEY]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = EntryStore(tmp_path / "1"), EntryStore(tmp_path / "2")
    first.write(KEY, tensors(), {"a": "1", "b": "2"})
    second.write(KEY, dict(reversed(tensors().items())), {"b": "2", "a": "1"})
    assert first.path(KEY).read_bytes() == second.path(KEY).read_bytes()


def test_safetensors_can_load_an_entry(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    store = EntryStore(tmp_path)
    found = load_file(store.write(KEY, tensors(), {}))
    assert torch.equal(found["pixels"], tensors()["pixels"])


def test_every_changed_byte_is_detected(tmp_path: Path) -> None:
    store = EntryStore(tmp_path)
    path = store.write(KEY, tensors(), {"sampled_fps": "1.5"})
    good = path.read_bytes()
    draw = random.Random(0)
    for place in range(len(good)):
        # A random bit, and bit 5, which only changes the case of a letter in the checksum.
        for bit in {draw.randrange(8), 5}:
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            path.write_bytes(bad)
            with pytest.raises(CorruptEntry, match="unchanged cache entry") as caught:
                store.read(KEY)
            assert str(path) in str(caught.value)
            with pytest.raises(CorruptEntry):
                store.verify(KEY)
    path.write_bytes(good)
    assert store.verify(KEY)


def test_every_lost_or_added_byte_is_detected(tmp_path: Path) -> None:
    store = EntryStore(tmp_path)
    path = store.write(KEY, tensors(), {})
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(CorruptEntry):
            store.read(KEY)
    path.write_bytes(good + b"\0")
    with pytest.raises(CorruptEntry):
        store.read(KEY)


def test_an_entry_under_a_wrong_name_is_detected(tmp_path: Path) -> None:
    store = EntryStore(tmp_path)
    other = "ab" + "1" * 38
    shutil.copy(store.write(KEY, tensors(), {}), store.path(other))
    with pytest.raises(CorruptEntry, match=f"holds the entry {KEY}"):
        store.read(other)


def test_failed_write_keeps_the_old_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EntryStore(tmp_path)
    store.write(KEY, tensors(), {})
    good = store.path(KEY).read_bytes()

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        store.write(KEY, tensors(), {"changed": "yes"})
    assert store.path(KEY).read_bytes() == good
    assert list(store.path(KEY).parent.iterdir()) == [store.path(KEY)]


def test_leftover_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    store = EntryStore(tmp_path)
    path = store.write(KEY, tensors(), {})
    # Unfinished files: `left` by an ended process, `own` of this process, and two of other
    # machines: `elsewhere` (new) and `forgotten` (old).
    script = (
        "import os, sys, pathlib; from tvg.data.cache.store import EntryStore; import torch\n"
        "os.replace = lambda *_: os._exit(9)\n"
        f"EntryStore(sys.argv[1]).write({KEY!r}, {{'x': torch.zeros(1)}}, {{}})"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode == 9
    (left,) = path.parent.glob(".*.tmp")
    *_, host, process, _ = left.name.split(".")
    own = left.with_name(left.name.replace(f".{process}.tmp", f".{os.getpid()}.tmp"))
    elsewhere = left.with_name(left.name.replace(f".{host}.", ".elsewhere."))
    forgotten = left.with_name(left.name.replace(f".{host}.", ".forgotten."))
    for other in (own, elsewhere, forgotten):
        shutil.copy(left, other)
    os.utime(forgotten, (0, 0))
    assert store.remove_leftovers() == sorted([left, forgotten])
    assert set(path.parent.iterdir()) == {path, own, elsewhere}
    assert list(store.stored_keys()) == [KEY]


CHANGED_SAMPLING = {
    "fps": 1.0,
    "min_frames": 6,
    "max_frames": 700,
    "frame_factor": 1,
    "min_pixels": 1000,
    "max_pixels": 20000,
    "total_pixels": 10**6,
    "resize_factor": 14,
}


def test_every_setting_changes_the_key() -> None:
    plain: dict[str, Any] = {
        "kind": "frames",
        "identity": {"size": 1, "mtime_ns": 2, "edges": "00"},
        "window": None,
        "lead_in": None,
        "sampling": FrameSampling(),
        "model": None,
    }
    assert CHANGED_SAMPLING.keys() == {f.name for f in fields(FrameSampling)}
    changes: list[dict[str, Any]] = [
        {},
        {"kind": "features"},
        {"identity": {"size": 2, "mtime_ns": 2, "edges": "00"}},
        {"identity": {"size": 1, "mtime_ns": 3, "edges": "00"}},
        {"identity": {"size": 1, "mtime_ns": 2, "edges": "01"}},
        {"window": Segment(0.0, 10.0)},
        {"window": Segment(0.0, 10.0 + 1e-12)},
        {"window": Segment(1.0, 10.0)},
        {"lead_in": LeadIn(1.0, "blank", 0)},
        {"lead_in": LeadIn(2.0, "blank", 0)},
        {"lead_in": LeadIn(1.0, "noise", 0)},
        {"lead_in": LeadIn(1.0, "noise", 1)},
        {"model": "a"},
        {"model": "b"},
        *(
            {"sampling": replace(FrameSampling(), **{name: value})}
            for name, value in CHANGED_SAMPLING.items()
        ),
    ]
    keys = [entry_key(**(plain | change)) for change in changes]
    assert len(set(keys)) == len(changes)
    assert all(len(key) == 40 and set(key) <= set("0123456789abcdef") for key in keys)
    again = entry_key(**(plain | {"window": Segment(0, 10)}))  # integers give the same key
    assert again == keys[5]


def test_cache_keys_are_stable() -> None:
    # An unintended change would rebuild every existing cache.
    key = entry_key(
        kind="frames",
        identity={"size": 1, "mtime_ns": 2, "edges": "00"},
        window=Segment(0.0, 10.5),
        lead_in=LeadIn(1.0, "blank", 3),
        sampling=FrameSampling(),
        model=None,
    )
    assert key == "1761cf3eeb7c8752c03cef73496104ff364c8be0"


def test_moving_keeps_a_files_identity_but_changing_does_not(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(bytes(3 * EDGE_BYTES))
    identity = file_identity(path)
    moved = path.rename(tmp_path / "moved.mp4")
    assert file_identity(moved) == identity
    state = moved.stat()
    for place in (0, 3 * EDGE_BYTES - 1):
        data = bytearray(3 * EDGE_BYTES)
        data[place] = 1
        moved.write_bytes(data)
        os.utime(moved, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert file_identity(moved) != identity
    moved.write_bytes(bytes(3 * EDGE_BYTES))
    os.utime(moved, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file_identity(moved) == identity
    os.utime(moved, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert file_identity(moved) != identity


@pytest.mark.parametrize(
    ("window", "lead_in"),
    [
        (None, None),
        (Segment(0.4, 1.5), None),
        (None, LeadIn(1.1, "noise", 7)),
        (Segment(0.4, 1.5), LeadIn(0.7, "freeze", 0)),
    ],
)
def test_cached_clips_equal_the_loaders_clips(
    window: Segment | None,
    lead_in: LeadIn | None,
    cache: FrameCache,
    loader: ClipLoader,
    videos: dict[str, Path],
) -> None:
    expected = loader.load(videos["varying_rate"], window, lead_in)
    decoder = loader.decoder
    assert isinstance(decoder, CountingDecoder)
    decoder.num_opened = 0
    for _ in range(3):
        assert_same(cache.load(videos["varying_rate"], window, lead_in), expected)
    assert decoder.num_opened == 1
    assert len(list(cache.store.stored_keys())) == 1


def test_changed_settings_do_not_read_stale_entries(
    cache: FrameCache, loader: ClipLoader, videos: dict[str, Path]
) -> None:
    path = videos["plain"]
    whole = cache.load(path)
    changed = ClipLoader(sampling=replace(SMALL, fps=1.0), decoder=loader.decoder, timeout_s=None)
    fewer = FrameCache(folder=cache.folder, loader=changed).load(path)
    assert (len(whole.frames), len(fewer.frames)) == (4, 4)  # min_frames
    part = cache.load(path, Segment(0.0, 1.0))
    assert part.duration_s == 1.0
    assert_same(cache.load(path), whole)
    assert len(list(cache.store.stored_keys())) == 3


def test_a_damaged_entry_is_logged_and_rebuilt(
    cache: FrameCache, videos: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    expected = cache.load(videos["plain"])
    path = cache.store.path(cache.key(videos["plain"]))
    good = path.read_bytes()
    draw = random.Random(1)
    for _ in range(5):
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert_same(cache.load(videos["plain"]), expected)
        (record,) = caplog.records
        assert str(path) in record.getMessage()
        assert path.read_bytes() == good
    path.write_bytes(bad)
    assert cache.ensure(videos["plain"]) == (path, "rebuilt", len(good))
    assert cache.ensure(videos["plain"]) == (path, "present", len(good))
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ENOENT]
)
def test_unwritable_cache_decodes_with_one_warning(
    number: int,
    cache: FrameCache,
    videos: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(EntryStore, "write", refuse)
    with caplog.at_level(logging.WARNING):
        assert_same(cache.load(videos["plain"]), cache.loader.load(videos["plain"]))
        assert_same(cache.load(videos["cuts"]), cache.loader.load(videos["cuts"]))
    (record,) = caplog.records
    assert str(cache.folder) in record.getMessage()
    assert os.strerror(number) in record.getMessage()
    with pytest.raises(UnusableStore, match="cannot be used") as caught:
        cache.ensure(videos["plain"])
    assert str(cache.folder) in str(caught.value)


def test_unreadable_cache_decodes_with_one_warning(
    cache: FrameCache,
    videos: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = cache.load(videos["plain"])

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(EntryStore, "read", refuse)
    monkeypatch.setattr(EntryStore, "verify", refuse)
    with caplog.at_level(logging.WARNING):
        assert_same(cache.load(videos["plain"]), expected)
        assert_same(cache.load(videos["plain"]), expected)
    (record,) = caplog.records
    assert "Permission denied" in record.getMessage()
    with pytest.raises(UnusableStore, match="Permission denied"):
        cache.ensure(videos["plain"])


def test_an_input_output_error_is_raised(
    cache: FrameCache, videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(EntryStore, "write", fail)
    with pytest.raises(OSError, match="Input/output error"):
        cache.load(videos["plain"])


def test_bad_videos_raise_the_loaders_errors(
    cache: FrameCache, bad_files: dict[str, tuple[Path, str]]
) -> None:
    for path, problem in bad_files.values():
        with pytest.raises(VideoError, match=problem):
            cache.load(path)
    assert list(cache.store.stored_keys()) == []
