"""Tests that damaged frames, which FFmpeg repairs without an error, make a clip unreadable."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import pytest

from tvg.data.dataset import GroundingDataset, LeftOut, Sample
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder, VideoError
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.data.video.pyav_decoder import PyAVDecoder
from tvg.data.video.sampling import FrameSampling
from tvg.types import GroundingExample, Segment

DECODERS: dict[str, VideoDecoder] = {
    "decord": DecordDecoder(num_threads=1),
    "pyav": PyAVDecoder(num_threads=1),
}


def damage(path: Path, packets: Iterable[int]) -> Path:
    """Flips a byte in each packet so that FFmpeg decodes all frames, some of them damaged."""
    with av.open(str(path)) as container:
        found = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    draw = random.Random(0)
    num_before = 0
    for position, size in (found[number] for number in packets):
        whole = path.read_bytes()
        for _ in range(30):
            data = bytearray(whole)
            data[position + draw.randrange(size // 3, size)] ^= draw.randrange(1, 256)
            path.write_bytes(data)
            num_frames, num_corrupt = decoded(path)
            if num_frames == len(found) and num_corrupt > num_before:
                num_before = num_corrupt
                break
        else:
            raise AssertionError(f"no flip in the packet at {position} of {path.name} damages it")
    return path


def decoded(path: Path) -> tuple[int, int]:
    """Returns the number of frames that FFmpeg decodes, and how many of them are damaged."""
    with av.open(str(path)) as container:
        try:
            states = [frame.is_corrupt for frame in container.decode(video=0)]
        except av.FFmpegError:
            return 0, 0
    return len(states), sum(states)


def load(path: Path, backend: str, window: Segment | None = None) -> object:
    sampling = FrameSampling(fps=5.0)
    return ClipLoader(sampling=sampling, decoder=DECODERS[backend], timeout_s=None).load(
        path, window
    )


@pytest.fixture(scope="module")
def damaged(
    tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]
) -> dict[str, Path]:
    """Videos of 4 s at 25 fps with a key frame every second, damaged in the third second."""
    folder = tmp_path_factory.mktemp("damaged")
    kinds = {
        "plain.mp4": {"bf": "0", "preset": "veryfast"},
        "reordered.mkv": {"bf": "2", "preset": "fast"},
        "counted.avi": {"bf": "2", "preset": "fast"},
    }
    return {
        name: damage(
            write_video(folder / name, num_frames=100, codec_options={"g": "25", **options}),
            range(55, 59),
        )
        for name, options in kinds.items()
    }


@pytest.mark.parametrize("backend", DECODERS)
@pytest.mark.parametrize("name", ["plain.mp4", "reordered.mkv", "counted.avi"])
def test_damaged_frames_make_a_clip_unreadable(
    name: str, backend: str, damaged: dict[str, Path]
) -> None:
    with pytest.raises(VideoError, match=r"is damaged: the frame at [23]\.\d+ s") as caught:
        load(damaged[name], backend)
    assert str(damaged[name]) in str(caught.value)


@pytest.mark.parametrize("backend", DECODERS)
def test_damage_outside_the_window_is_ignored(backend: str, damaged: dict[str, Path]) -> None:
    for window in (Segment(0.0, 1.9), Segment(3.0, 4.0)):
        load(damaged["plain.mp4"], backend, window)


@pytest.mark.parametrize("backend", DECODERS)
def test_a_damaged_first_frame_is_named(
    backend: str, tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    path = damage(write_video(tmp_path / "v.mp4", num_frames=30), [0])
    with pytest.raises(VideoError, match=r"v\.mp4: is damaged: its first frame"):
        load(path, backend)


def test_on_missing_handles_damaged_clips(
    damaged: dict[str, Path], write_video: Callable[..., Path], tmp_path: Path
) -> None:
    good = write_video(tmp_path / "good.mp4", num_frames=30)
    examples = [
        GroundingExample(
            qid=path.name,
            video=path.name,
            video_path=path,
            query="x",
            segment=Segment(0.1, 0.5),
            duration_s=None,
        )
        for path in (damaged["plain.mp4"], good)
    ]
    loader = ClipLoader(sampling=FrameSampling(), decoder=DECODERS["pyav"], timeout_s=None)
    scoring, training = (
        GroundingDataset(examples=examples, loader=loader, memory_cache=False, on_unreadable=how)
        for how in ("leave_out", "replace")
    )
    left_out = scoring[0]
    assert isinstance(left_out, LeftOut)
    assert "plain.mp4: is damaged" in left_out.problem
    replaced = training[0]
    assert isinstance(replaced, Sample)
    assert replaced.example.qid == "good.mp4"
