"""Tests of filling the frame cache: bad videos are skipped, and kills do not change its bytes."""

from __future__ import annotations

import errno
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tvg.data.cache.errors import UnusableStore
from tvg.data.cache.frames import FrameCache
from tvg.data.cache.store import EntryStore
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder, VideoInfo
from tvg.data.video.pyav_decoder import PyAVDecoder
from tvg.data.video.sampling import FrameSampling
from tvg.data.video.time_limit import TimeLimitedDecoder
from tvg.preparation.frames import (
    ClipRequest,
    Prepared,
    check_disk,
    estimated_bytes,
    missing_bytes,
    prepare_frames,
    unique_requests,
    workers_worth,
)
from tvg.preparation.probing import probe_videos
from tvg.types import GroundingExample, LeadIn, Segment

SMALL = FrameSampling(min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28, max_frames=8)

# Written to a separate module, because the worker processes import it.
PLANTED = '''
import os, signal, time
from contextlib import contextmanager
from tvg.data.video.pyav_decoder import PyAVDecoder


class Planted(PyAVDecoder):
    """Decodes videos; a file name such as `hangs.mp4` triggers a fault."""

    @contextmanager
    def open(self, path):
        name = os.path.basename(path)
        if "hangs" in name:  # as in a C library: Python's signal handlers do not run
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            while True:
                time.sleep(1000)
        if "leaves" in name:
            os._exit(3)
        if "killed" in name:
            os.kill(os.getpid(), signal.SIGKILL)
        if "bug" in name:
            raise KeyError("a bug of the decoder")
        if "slow" in name:
            time.sleep(0.1)
        with super().open(path) as video:
            yield video
'''

PREPARE = """
import sys
from pathlib import Path
from planted_workers import Planted
from tvg.data.cache.frames import FrameCache
from tvg.data.video.clip import ClipLoader
from tvg.preparation.frames import ClipRequest, prepare_frames
from tvg.data.video.sampling import FrameSampling

if __name__ == "__main__":
    videos, folder, num_workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    sampling = FrameSampling(min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28, max_frames=8)
    loader = ClipLoader(sampling=sampling, decoder=Planted(num_threads=1), timeout_s=None)
    requests = [ClipRequest(path) for path in sorted(videos.glob("*.mp4"))]
    cache = FrameCache(folder=folder, loader=loader)
    done = prepare_frames(requests, cache, num_workers=num_workers, timeout_s=60.0)
    print(done.num_entries, done.num_bytes, done.rebuilt, done.failures)
"""


@pytest.fixture(scope="module")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted_workers.py").write_text(PLANTED)
    (folder / "prepare.py").write_text(PREPARE)
    return folder


@pytest.fixture(scope="module")
def planted(planted_folder: Path) -> Iterator[VideoDecoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(planted_folder))
        yield importlib.import_module("planted_workers").Planted(num_threads=1)
        sys.modules.pop("planted_workers", None)


@pytest.fixture
def loader() -> ClipLoader:
    return ClipLoader(sampling=SMALL, decoder=PyAVDecoder(num_threads=1), timeout_s=None)


@pytest.fixture
def cache(tmp_path: Path, loader: ClipLoader) -> FrameCache:
    return FrameCache(folder=tmp_path / "cache", loader=loader)


def example(qid: str, path: Path | None, **values: Any) -> GroundingExample:
    return GroundingExample(
        qid=qid,
        video=qid,
        video_path=path,
        query="q",
        segment=None,
        duration_s=None,
        **values,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file of a cache, except the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def many_videos(folder: Path, num: int, write_video: Callable[..., Path]) -> Path:
    """Writes `num` different videos, each slow to open, and returns their folder."""
    folder.mkdir()
    for index in range(num):
        write_video(folder / f"slow{index:02d}.mp4", num_frames=20 + index)
    return folder


def test_equal_clips_are_requested_once(videos: dict[str, Path]) -> None:
    plain, cuts = videos["plain"], videos["cuts"]
    window, lead_in = Segment(0.0, 1.0), LeadIn(1.0, "blank", 0)
    examples = [
        example("a", plain),
        example("b", cuts, window=window),
        example("c", plain),
        example("d", plain, window=window),
        example("e", plain, lead_in=lead_in),
        example("f", None),
        example("g", cuts, window=window),
    ]
    assert unique_requests(examples) == [
        ClipRequest(plain, None, None),
        ClipRequest(cuts, window, None),
        ClipRequest(plain, window, None),
        ClipRequest(plain, None, lead_in),
    ]


def test_size_estimate_is_a_tight_upper_bound(cache: FrameCache, videos: dict[str, Path]) -> None:
    names = ["plain", "cuts", "narrow", "rotated_90"]
    requests = [ClipRequest(videos[name]) for name in names]
    requests += [
        ClipRequest(videos["plain"], Segment(0.0, 1.3)),
        ClipRequest(videos["plain"], None, LeadIn(2.0, "noise", 1)),
        ClipRequest(videos["plain"], Segment(90.0, 95.0)),  # past the file's end
        ClipRequest(cache.folder / "missing.mp4"),
    ]
    infos = probe_videos([r.path for r in requests], cache.decoder, num_workers=0, timeout_s=None)
    estimate = estimated_bytes(requests, infos, cache.loader)
    assert missing_bytes(requests, infos, cache) == estimate
    done = prepare_frames(requests[:2], cache, num_workers=0, timeout_s=None)
    first = estimated_bytes(requests[:2], infos, cache.loader)
    assert done.num_bytes <= first <= done.num_bytes + 2 * 1024
    # 60 frames at 25 fps last 2.4 s. At 2 fps these are 4 frames of 56x56 and 4 float64 times.
    plain = estimated_bytes(requests[:1], infos, cache.loader)
    assert plain == 4 * (3 * 56 * 56 + 8) + 1024
    assert missing_bytes(requests, infos, cache) == estimate - first
    done = prepare_frames(requests, cache, num_workers=0, timeout_s=None)
    assert (done.present, done.written, len(done.failures)) == (2, 4, 2)
    assert done.num_bytes <= estimate <= done.num_bytes + 6 * 1024
    assert done.num_bytes == sum(len(data) for data in contents(cache.folder).values())


def test_disk_without_enough_space_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> object:
        asked.append(Path(path))
        return namedtuple("usage", "total used free")(10 * 2**30, 8 * 2**30, 2 * 2**30)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    folder = tmp_path / "not" / "there"
    check_disk(folder, 2 * 2**30)
    with pytest.raises(ValueError, match=r"needs 2\.50 GiB, 2\.00 GiB are free") as caught:
        check_disk(folder, 5 * 2**29)
    assert str(folder) in str(caught.value)
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_probing_continues_after_failures(
    num_workers: int, videos: dict[str, Path], bad_files: dict[str, tuple[Path, str]]
) -> None:
    paths = [videos["plain"], *(path for path, _ in bad_files.values()), videos["narrow"]]
    # The time limit of the call replaces the decoder's limit of 1 ms.
    decoder = TimeLimitedDecoder(decoder=PyAVDecoder(num_threads=1), timeout_s=0.001)
    found = probe_videos(paths * 2, decoder, num_workers=num_workers, timeout_s=60.0)
    assert list(found) == paths
    assert found[videos["plain"]] == VideoInfo(num_frames=60, fps=25.0, height=48, width=64)
    assert isinstance(found[videos["narrow"]], VideoInfo)
    for path, problem in bad_files.values():
        text = found[path]
        assert isinstance(text, str)
        assert problem in text
        assert str(path) not in text  # the path is already the key


@pytest.mark.slow
def test_hanging_and_dying_workers_do_not_stop_the_rest(
    planted: VideoDecoder, tmp_path: Path, videos: dict[str, Path]
) -> None:
    names = ["good0", "hangs", "good1", "leaves", "bug", "good2", "killed", "good3", "good4"]
    requests = []
    for index, name in enumerate(names):
        path = tmp_path / f"{name}.mp4"
        shutil.copy(videos["plain"], path)
        os.utime(path, (index, index))  # otherwise the cache would treat all as one file
        requests.append(ClipRequest(path))
    requests.append(ClipRequest(requests[0].path, Segment(50.0, 60.0)))
    loader = ClipLoader(sampling=SMALL, decoder=planted, timeout_s=None)
    cache = FrameCache(folder=tmp_path / "cache", loader=loader)
    done = prepare_frames(requests, cache, num_workers=2, timeout_s=2.0)
    assert (done.written, done.present, done.rebuilt) == (5, 0, [])
    problems = {Path(path).stem: problem for path, problem in done.failures.items()}
    assert problems.pop("hangs") == (
        "was not decoded within the time limit of 2 s per clip (timeout_s); the decoder was stopped"
    )
    assert problems.pop("leaves") == "the decoder process died (exit status 3)"
    assert problems.pop("killed") == "the decoder process died (signal 9)"
    assert problems.pop("bug") == "the decoder failed (KeyError: 'a bug of the decoder')"
    assert "does not fit this file of 2.40 s" in problems.pop("good0")  # one of its two clips
    assert problems == {}
    assert set(done.failed) == {requests[i] for i in (1, 3, 4, 6, 9)}
    for index in (0, 2, 5, 7, 8):
        assert cache.store.verify(cache.key(*requests[index]))


def test_a_hung_decoder_is_timed_out_without_workers(
    planted: VideoDecoder, tmp_path: Path, videos: dict[str, Path]
) -> None:
    hangs = tmp_path / "hangs.mp4"
    hangs.symlink_to(videos["cuts"])
    loader = ClipLoader(sampling=SMALL, decoder=planted, timeout_s=None)
    cache = FrameCache(folder=tmp_path / "cache", loader=loader)
    requests = [ClipRequest(hangs), ClipRequest(videos["plain"])]
    done = prepare_frames(requests, cache, num_workers=0, timeout_s=1.0)
    assert done.written == 1
    assert "time limit of 1 s" in done.failures[str(hangs)]


def test_intact_entries_are_kept_and_damaged_ones_rebuilt(
    cache: FrameCache, videos: dict[str, Path]
) -> None:
    requests = [ClipRequest(videos[name]) for name in ("plain", "cuts", "narrow")]
    first = prepare_frames(requests, cache, num_workers=0, timeout_s=None)
    before = contents(cache.folder)
    assert first == Prepared(
        written=3, present=0, num_bytes=sum(len(data) for data in before.values())
    )
    damaged, kept = (cache.store.path(cache.key(r.path)) for r in requests[:2])
    kept_at = kept.stat().st_mtime_ns
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = prepare_frames(requests, cache, num_workers=0, timeout_s=None)
    assert again == Prepared(
        written=0, present=2, rebuilt=[str(damaged)], num_bytes=first.num_bytes
    )
    assert contents(cache.folder) == before
    assert kept.stat().st_mtime_ns == kept_at
    assert first.num_entries == again.num_entries == 3


def test_existing_entries_start_no_process(
    cache: FrameCache, videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ClipRequest(videos["plain"]), ClipRequest(videos["matroska"])]
    first = prepare_frames(requests, cache, num_workers=0, timeout_s=None)
    entry = sorted(cache.folder.rglob("*.safetensors"))[0]

    def start(**_: object) -> None:
        raise AssertionError("a worker process was started")

    monkeypatch.setattr("tvg.preparation.pool.ProcessPool", start)
    again = prepare_frames(requests, cache, num_workers=2, timeout_s=30.0)
    assert (first.written, again.present, again.num_bytes) == (2, 2, first.num_bytes)
    entry.write_bytes(entry.read_bytes()[:-1])  # a damaged entry is rebuilt
    rebuilt = prepare_frames(requests, cache, num_workers=0, timeout_s=None)
    assert (rebuilt.rebuilt, rebuilt.present) == ([str(entry)], 1)


@pytest.mark.parametrize(
    ("num_items", "timeout_s", "expected"), [(8, 30.0, 0), (9, 30.0, 4), (1, None, 4)]
)
def test_a_few_clips_start_no_workers(
    num_items: int, timeout_s: float | None, expected: int
) -> None:
    assert workers_worth(num_items, 4, timeout_s) == expected


def test_copies_of_a_file_share_one_entry(
    cache: FrameCache, videos: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copy2(videos["plain"], tmp_path / "copy.mp4")
    requests = [ClipRequest(videos["plain"]), ClipRequest(copy)]
    done = prepare_frames(requests, cache, num_workers=0, timeout_s=None)
    assert (done.written, done.present) == (1, 0)
    assert done.num_bytes == sum(len(data) for data in contents(cache.folder).values())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_disk_that_fills_up_stops_the_preparation(
    num_workers: int, loader: ClipLoader, videos: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "cache" / "frames").mkdir(parents=True)
    cache = FrameCache(folder=tmp_path / "cache", loader=loader)
    # A file blocks the path of the entry's folder, so that not even root can write there.
    cache.store.path(cache.key(videos["plain"])).parent.write_text("")
    requests = [ClipRequest(videos["plain"]), ClipRequest(videos["cuts"])]
    with pytest.raises(UnusableStore, match=os.strerror(errno.ENOTDIR)) as caught:
        prepare_frames(requests, cache, num_workers=num_workers, timeout_s=60.0)
    assert str(tmp_path / "cache") in str(caught.value)


def test_folder_in_use_by_another_preparation_is_refused(
    cache: FrameCache, videos: dict[str, Path]
) -> None:
    cache.folder.mkdir()
    request = [ClipRequest(videos["plain"])]
    with (
        FileLock(cache.folder / ".prepare.lock"),
        pytest.raises(ValueError, match=r"^data\.cache\.folder: .* is in use") as caught,
    ):
        prepare_frames(request, cache, num_workers=0, timeout_s=None)
    assert str(cache.folder) in str(caught.value)
    assert prepare_frames(request, cache, num_workers=0, timeout_s=None).written == 1
    assert prepare_frames(request, cache, num_workers=0, timeout_s=None).present == 1


def test_folder_that_cannot_be_created_is_named(loader: ClipLoader, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = FrameCache(folder=tmp_path / "file" / "cache", loader=loader)
    with pytest.raises(ValueError, match=r"file/cache: cannot be written to"):
        prepare_frames([], cache, num_workers=0, timeout_s=None)


def start(
    planted_folder: Path, videos: Path, cache: Path, num_workers: int
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            str(planted_folder / "prepare.py"),
            str(videos),
            str(cache),
            str(num_workers),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_at(
    draw: random.Random, process: subprocess.Popen[str], store: EntryStore, num_entries: int
) -> None:
    """Kills a preparation at a random moment after it has written `num_entries` entries."""
    deadline = time.monotonic() + 60
    while len(list(store.stored_keys())) < num_entries and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(draw.uniform(0.0, 0.2))
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "num_kills"), [(0, 2), (2, 10)])
def test_killed_and_resumed_preparation_equals_uninterrupted_one(
    num_workers: int,
    num_kills: int,
    planted_folder: Path,
    tmp_path: Path,
    write_video: Callable[..., Path],
) -> None:
    num_videos = 5 * num_kills
    videos = many_videos(tmp_path / "videos", num_videos, write_video)
    undisturbed = start(planted_folder, videos, tmp_path / "1", num_workers)
    expected, _ = undisturbed.communicate()
    draw = random.Random(0)
    store = EntryStore(tmp_path / "2" / "frames")
    num_killed = 0
    for kill in range(num_kills):
        process = start(planted_folder, videos, tmp_path / "2", num_workers)
        kill_at(draw, process, store, 4 * kill + draw.randrange(1, 4))
        num_killed += process.returncode == -signal.SIGKILL
        assert all(store.verify(key) for key in store.stored_keys())
    assert num_killed == num_kills
    assert 0 < len(list(store.stored_keys())) < num_videos
    resumed = start(planted_folder, videos, tmp_path / "2", num_workers)
    found, _ = resumed.communicate()
    assert found == expected
    assert found.startswith(f"{num_videos} ")
    assert contents(tmp_path / "2") == contents(tmp_path / "1")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_workers_stop_with_their_parent(
    number: signal.Signals, planted_folder: Path, tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    videos = many_videos(tmp_path / "videos", 200, write_video)
    process = start(planted_folder, videos, tmp_path / "cache", 2)
    store = EntryStore(tmp_path / "cache" / "frames")
    deadline = time.monotonic() + 60
    while len(list(store.stored_keys())) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(number)
    process.communicate(timeout=60)
    assert (
        process.returncode
        == {
            signal.SIGTERM: 128 + signal.SIGTERM,
            signal.SIGINT: -signal.SIGINT,
            signal.SIGKILL: -signal.SIGKILL,
        }[number]
    )
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in workers)
    assert all(store.verify(key) for key in store.stored_keys())
    if number != signal.SIGKILL:
        assert not list(store.folder.glob("??/.*"))


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_alive(pid: int) -> bool:
    """Returns whether a process runs; a zombie counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_probing_does_not_import_torch():
    code = "import sys, tvg.preparation.probing; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
