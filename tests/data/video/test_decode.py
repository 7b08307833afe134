"""Tests that both decoders return the same exact frames, and of errors for bad or hung files."""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from tvg.data.video.decode import VideoDecoder, VideoError, check_indices, chunks
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.data.video.pyav_decoder import PyAVDecoder
from tvg.data.video.time_limit import TimeLimitedDecoder

VIDEO_NAMES = [
    "plain",
    "bframes",
    "cuts",
    "varying_rate",
    "open_gop",
    "matroska",
    "avi",
    "transport",
    "late_start",
    "edit_list",
    "narrow",
    "rotated_90",
    "rotated_180",
    "rotated_270",
]
SAME_AS_DECORD = ["plain", "bframes", "cuts", "varying_rate", "matroska", "late_start"]
BAD_NAMES = [
    "missing",
    "directory",
    "text",
    "empty",
    "truncated",
    "truncated_at_packet",
    "truncated_matroska",
    "truncated_avi",
    "truncated_avi_at_packet",
    "without_index",
    "audio_only",
    "no_frames",
]
DECODERS = {
    "decord": DecordDecoder(num_threads=1),
    "decord_threads": DecordDecoder(num_threads=2),
    "pyav": PyAVDecoder(num_threads=1),
    "pyav_threads": PyAVDecoder(num_threads=2),
}


def decode_all(path: Path) -> NDArray[np.uint8]:
    """Decodes all frames in order and applies the file's rotation; the oracle of these tests."""
    import av

    with av.open(str(path)) as container:
        frames = [
            np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4)
            for frame in container.decode(video=0)
        ]
    return np.stack(frames)


@pytest.mark.parametrize("backend", DECODERS)
@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_frames_are_exact(name: str, backend: str, videos: dict[str, Path]) -> None:
    path, decoder = videos[name], DECODERS[backend]
    expected = decode_all(path)
    info = decoder.probe(path)
    assert (info.num_frames, info.height, info.width, 3) == expected.shape
    assert np.array_equal(decoder.read(path, range(info.num_frames)), expected)
    draw = random.Random(0)
    for num in (1, 1, 2, 3, 5, 12):
        indices = sorted(draw.choices(range(info.num_frames), k=num))
        assert np.array_equal(decoder.read(path, indices), expected[indices]), indices


@pytest.mark.parametrize("name", SAME_AS_DECORD)
def test_frames_equal_plain_decord(name: str, videos: dict[str, Path]) -> None:
    import decord

    reader = decord.VideoReader(str(videos[name]))
    expected = reader.get_batch(list(range(0, len(reader), 3))).asnumpy()
    for backend in ("decord", "pyav"):
        info = DECODERS[backend].probe(videos[name])
        assert info.num_frames == len(reader)
        assert (info.variable is not None) is (name == "varying_rate")
        if info.variable is None:
            assert info.fps == reader.get_avg_fps()
        frames = DECODERS[backend].read(videos[name], range(0, len(reader), 3))
        assert np.array_equal(frames, expected)


def test_an_avi_without_index_has_all_frames(tmp_path: Path, videos: dict[str, Path]) -> None:
    data = videos["avi"].read_bytes()
    path = tmp_path / "no_index.avi"
    path.write_bytes(data[: data.rindex(b"idx1")])
    assert DECODERS["pyav"].probe(path).num_frames == 60


def test_frames_hidden_by_an_edit_list_do_not_count(videos: dict[str, Path]) -> None:
    info = DECODERS["decord"].probe(videos["edit_list"])
    assert info.num_frames == 50  # 60 written, 10 cut off by the edit list
    assert info.duration_s == 2.0


def test_pyav_decodes_files_whose_first_frame_decord_misreads(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import decord

    get_batch = decord.VideoReader.get_batch
    monkeypatch.setattr(
        decord.VideoReader, "get_batch", lambda self, indices: get_batch(self, [9 for _ in indices])
    )
    frames = DECODERS["decord"].read(videos["bframes"], [0, 30])
    assert np.array_equal(frames, decode_all(videos["bframes"])[[0, 30]])


def test_the_files_rotation_is_applied(videos: dict[str, Path]) -> None:
    plain = DECODERS["pyav"].read(videos["plain"], [7])[0]
    quarter = DECODERS["decord"].read(videos["rotated_90"], [7])[0]
    assert quarter.shape == (64, 48, 3)
    assert np.array_equal(quarter, np.rot90(plain, -1))  # clockwise
    half = DECODERS["decord"].read(videos["rotated_180"], [7])[0]
    assert np.array_equal(half, plain[::-1, ::-1])


def test_few_frames_are_reached_by_seeking(
    tmp_path: Path, write_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvg.data.video import pyav_decoder as decode_pyav

    path = write_video(tmp_path / "long.mp4", num_frames=300, codec_options={"g": "20"})
    passed: list[int] = []
    advance = decode_pyav.PyAVVideo._advance_to

    def counting(self: decode_pyav.PyAVVideo, index: int) -> object:
        decoded = self._decoded
        count = 0

        def tally() -> object:
            nonlocal count
            for frame in decoded:
                count += 1
                yield frame

        self._decoded = tally()  # type: ignore[assignment]
        frame = advance(self, index)
        self._decoded = decoded
        passed.append(count)
        return frame

    monkeypatch.setattr(decode_pyav.PyAVVideo, "_advance_to", counting)
    DECODERS["pyav"].read(path, [5, 150, 285])
    assert passed == [6, 11, 6]  # from the key frames 0, 140 and 280
    passed.clear()
    DECODERS["pyav"].read(path, range(0, 300, 5))
    assert sum(passed) == 296  # one pass without seeking


@pytest.mark.parametrize("num_threads", [1, 2])
def test_unneeded_frames_are_not_decoded(
    num_threads: int, tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    from tvg.data.video.pyav_decoder import PyAVVideo

    # As in x264's defaults: three B-frames in a row, of which the middle one is a reference.
    options = {"preset": "medium", "x264-params": "b-adapt=0:bframes=3:keyint=250:scenecut=0"}
    path = write_video(tmp_path / "v.mp4", num_frames=200, codec_options=options)
    expected = decode_all(path)
    draw = random.Random(2)
    for wanted in ([], *(sorted(draw.sample(range(200), k=20)) for _ in range(5))):
        with PyAVDecoder(num_threads=num_threads).open(path) as video:
            assert isinstance(video, PyAVVideo)
            video._wanted = frozenset(video._index.pts[index] for index in wanted)
            video._restart()
            decoded = {frame.pts: frame.to_ndarray(format="rgb24") for frame in video._decoded}
        pts = video._index.pts
        # After the first frame, each four frames are one P, one reference B, two other B frames.
        assert 100 <= len(decoded) <= 102 + len(wanted)
        assert all(np.array_equal(decoded[pts[index]], expected[index]) for index in wanted)
        assert list(decoded) == sorted(decoded)


def test_frames_are_returned_in_chunks_of_limited_size(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvg.data.video.decode.CHUNK_BYTES", 10 * 64 * 48 * 3)
    expected = decode_all(videos["bframes"])[::2]
    for decoder in (DECODERS["decord"], DECODERS["pyav"]):
        with decoder.open(videos["bframes"]) as video:
            parts = list(video.frames(range(0, 90, 2)))
        assert [len(part) for part in parts] == [10, 10, 10, 10, 5]
        assert np.array_equal(np.concatenate(parts), expected)


def test_a_chunk_has_at_least_one_frame(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvg.data.video.decode.CHUNK_BYTES", 1)
    info = DECODERS["pyav"].probe(videos["plain"])
    assert list(chunks([3, 4], info)) == [[3], [4]]


def test_both_backends_agree_on_the_sample_video(shared_dir: Path) -> None:
    path = shared_dir / "data" / "videos" / "OHOFG.mp4"
    indices = list(range(0, 335, 30))
    info = DECODERS["decord"].probe(path)
    assert (info.num_frames, info.height, info.width) == (335, 360, 640)
    assert info == DECODERS["pyav"].probe(path)
    assert np.array_equal(
        DECODERS["decord"].read(path, indices), DECODERS["pyav"].read(path, indices)
    )


@pytest.mark.parametrize("backend", ["decord", "pyav", "limited"])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_errors_for_bad_files_name_the_path(
    name: str, backend: str, bad_files: dict[str, tuple[Path, str]], limited: VideoDecoder
) -> None:
    path, problem = bad_files[name]
    decoder = limited if backend == "limited" else DECODERS[backend]
    with pytest.raises(VideoError, match=problem) as caught:
        decoder.probe(path)
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value) or name == "no_frames"


def test_missing_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.mp4"
    path.write_bytes(b"x" * 100)
    # The user of the tests may have all permissions, so the error is simulated.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(VideoError, match=r"secret\.mp4: permission denied"):
        DECODERS["pyav"].probe(path)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)  # opening it would wait forever for a writer
    with pytest.raises(VideoError, match="not a regular file"):
        DECODERS["decord"].probe(path)


@pytest.mark.parametrize("indices", [[], [-1], [60], [3, 2]])
def test_wrong_indices_are_refused(indices: list[int]) -> None:
    with pytest.raises(VideoError, match="frame indices must ascend within 0 to 59"):
        check_indices("some.mp4", indices, 60)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(VideoError("some.mp4", "is odd")))
    assert (error.path, error.problem, str(error)) == ("some.mp4", "is odd", "some.mp4: is odd")


# Tests of the time limit. The decoding process imports the faulty decoder from a separate module.

PLANTED = '''
import os, signal, time
from contextlib import contextmanager
from tvg.data.video.pyav_decoder import PyAVDecoder


class Planted(PyAVDecoder):
    """Decodes with a fault that the file's name selects."""

    @contextmanager
    def open(self, path):
        name = os.path.basename(path)
        if "hang_at_open" in name:
            hang()
        if "dies" in name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "bug" in name:
            raise KeyError("a bug of the decoder")
        with super().open(path) as video:
            if "hang_at_read" in name:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
                video.frames = lambda indices: iter(hang, None)
            if "drips" in name:
                frames = video.frames
                video.frames = lambda indices: map(drip, frames([0] * 9000))
            yield video


def drip(chunk):
    """Delays each chunk, so that only the total time exceeds the limit."""
    time.sleep(0.6)
    return chunk


def hang():
    """Simulates a deadlock in a C library, where SIGINT and SIGTERM have no effect."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    while True:
        time.sleep(1000)
'''


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> object:
    import importlib
    import sys

    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted_decoder.py").write_text(PLANTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("planted_decoder").Planted(num_threads=1)
        sys.modules.pop("planted_decoder", None)


@pytest.fixture(scope="module")
def limited(planted: VideoDecoder) -> TimeLimitedDecoder:
    return TimeLimitedDecoder(decoder=planted, timeout_s=30.0)


def link(folder: Path, name: str, video: Path) -> Path:
    path = folder / f"{name}.mp4"
    path.symlink_to(video)
    return path


def test_the_time_limit_does_not_change_frames(
    limited: VideoDecoder, videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bframes", "rotated_90"):
        info = limited.probe(videos[name])
        assert info == DECODERS["pyav"].probe(videos[name])
        frames = limited.read(videos[name], [1, 1, 30, 59])
        assert np.array_equal(frames, decode_all(videos[name])[[1, 1, 30, 59]])


@pytest.mark.parametrize("name", ["hang_at_open", "hang_at_read", "drips"])
def test_a_hung_decoder_is_stopped_and_replaced(
    name: str, planted: VideoDecoder, videos: dict[str, Path], tmp_path: Path
) -> None:
    decoder = TimeLimitedDecoder(decoder=planted, timeout_s=1.0)
    assert decoder.probe(videos["plain"]).num_frames == 60
    child = child_of(decoder)
    begin = time.monotonic()
    path = link(tmp_path, name, videos["plain"])
    with pytest.raises(VideoError, match=r"time limit of 1 s") as caught:
        decoder.read(path, [0, 1])
    assert time.monotonic() - begin < 60
    assert str(path) in str(caught.value)
    assert not is_alive(child)
    assert decoder.read(videos["plain"], [0, 1]).shape == (2, 48, 64, 3)
    assert child_of(decoder) != child


def test_a_crashed_decoder_is_reported_and_replaced(
    limited: TimeLimitedDecoder, videos: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(VideoError, match=r"dies\.mp4: the decoder process died \(signal 11\)"):
        limited.probe(link(tmp_path, "dies", videos["plain"]))
    assert limited.probe(videos["plain"]).num_frames == 60


def test_a_decoder_bug_is_not_a_video_error(
    limited: TimeLimitedDecoder, videos: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="a bug of the decoder"):
        limited.probe(link(tmp_path, "bug", videos["plain"]))
    child = child_of(limited)
    assert limited.probe(videos["plain"]).num_frames == 60
    assert child_of(limited) == child


def test_a_decoder_works_after_a_clip_is_abandoned(
    limited: TimeLimitedDecoder, videos: dict[str, Path]
) -> None:
    def leave() -> None:
        with limited.open(videos["bframes"]) as video:
            next(iter(video.frames(range(90))))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        leave()
    assert np.array_equal(limited.read(videos["plain"], [9]), decode_all(videos["plain"])[[9]])


def test_the_child_process_ends_with_its_owner(
    planted: VideoDecoder, videos: dict[str, Path]
) -> None:
    decoder = TimeLimitedDecoder(decoder=planted, timeout_s=5.0)
    decoder.probe(videos["plain"])
    child = child_of(decoder)
    assert is_alive(child)
    del decoder
    assert not is_alive(child)


def test_a_hung_child_exits_after_its_owner_was_killed(
    planted: VideoDecoder, videos: dict[str, Path], tmp_path: Path
) -> None:
    path = link(tmp_path, "hang_at_open", videos["plain"])
    reading, writing = os.pipe()
    owner = os.fork()
    if owner == 0:
        decoder = TimeLimitedDecoder(decoder=planted, timeout_s=1.0)
        decoder.probe(videos["plain"])
        os.write(writing, str(child_of(decoder)).encode())
        decoder.timeout_s = 1000.0  # only the child's own alarm can stop it
        decoder.probe(path)
        os._exit(0)
    os.close(writing)
    child = int(os.read(reading, 20))
    os.close(reading)
    time.sleep(0.5)
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    deadline = time.monotonic() + 60
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


class TwoFrames(Dataset[torch.Tensor]):
    """Returns two frames of each video, -1 after a timeout, -2 after another error."""

    def __init__(self, decoder: VideoDecoder, paths: Sequence[Path]) -> None:
        self.decoder, self.paths = decoder, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        try:
            return torch.from_numpy(self.decoder.read(self.paths[index], [0, 20]))
        except VideoError as error:
            return torch.tensor(-1 if "time limit" in str(error) else -2)


@pytest.mark.parametrize("is_used_before", [False, True])
def test_the_time_limit_applies_in_data_loader_workers(
    is_used_before: bool, planted: VideoDecoder, videos: dict[str, Path], tmp_path: Path
) -> None:
    # Workers are daemons, which multiprocessing does not allow to have children. If the decoder
    # was used before, they also inherit a child that serves the parent process.
    decoder = TimeLimitedDecoder(decoder=planted, timeout_s=2.0)
    if is_used_before:
        decoder.probe(videos["plain"])
    paths = [videos["plain"], link(tmp_path, "hang_at_read", videos["plain"]), videos["bframes"]]
    loader = DataLoader(TwoFrames(decoder, paths), batch_size=None, num_workers=2)
    first, hung, last = list(loader)
    assert np.array_equal(first.numpy(), decode_all(videos["plain"])[[0, 20]])
    assert hung.item() == -1
    assert np.array_equal(last.numpy(), decode_all(videos["bframes"])[[0, 20]])
    assert np.array_equal(decoder.read(videos["plain"], [0, 20]), first.numpy())


def test_a_decoder_that_cannot_start_is_reported(planted: VideoDecoder, tmp_path: Path) -> None:
    class Unknown(PyAVDecoder):
        __module__ = "no_such_module"

    Unknown.__qualname__ = "Unknown"
    decoder = TimeLimitedDecoder(decoder=Unknown(num_threads=1), timeout_s=1.0)
    with pytest.raises((RuntimeError, pickle.PicklingError)):
        decoder.probe(tmp_path)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_time_limit_must_be_positive(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s must be positive"):
        TimeLimitedDecoder(decoder=DECODERS["pyav"], timeout_s=timeout_s)


def child_of(decoder: TimeLimitedDecoder) -> int:
    assert decoder._child is not None
    return decoder._child._process.pid


def is_alive(pid: int) -> bool:
    """Returns whether a process runs and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
