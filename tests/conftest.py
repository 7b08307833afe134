"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Restores Python's SIGINT handler, because shells ignore SIGINT in background jobs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` next to the project, with public annotation files; skips without it."""
    folder = PROJECT.parent / "shared"
    if not folder.is_dir():
        if os.environ.get("TVG_REQUIRE_SHARED") == "1":
            pytest.fail("TVG_REQUIRE_SHARED=1, but there is no folder `shared` beside the project")
        pytest.skip("needs the folder `shared` beside the project")
    return folder


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """A function that writes a small H.264 video in which all frames differ."""
    return _write_video


def _write_video(
    path: Path,
    *,
    fps: float | Fraction = 25,
    num_frames: int = 50,
    width: int = 64,
    height: int = 48,
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    frame_times_ms: list[int] | None = None,
) -> Path:
    """Writes a video to `path`.

    Args:
        codec_options: for example {"g": "12", "bf": "3"} for key frames and B-frames.
        frame_times_ms: ascending frame times of a video with a variable frame rate.
    """
    import av

    rng = np.random.default_rng(0)
    rate = Fraction(fps).limit_denominator(1001) if frame_times_ms is None else Fraction(1000)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "threads": "1", **(codec_options or {})}
        tile = rng.integers(0, 255, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        for index in range(num_frames):
            tile = np.roll(tile, 1, axis=1)
            tile[0, 0] = rng.integers(0, 255, 3)
            pixels = tile.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.time_base = 1 / rate
            frame.pts = index if frame_times_ms is None else frame_times_ms[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated data set: train, val and test files with 6, 3 and 3 clips."""
    from tvg.synthetic.world import world_settings
    from tvg.synthetic.write import write_world

    return write_world(
        tmp_path_factory.mktemp("world") / "world",
        settings=world_settings(difficulty="medium"),
        num_clips={"train": 6, "val": 3, "test": 3},
        seed=0,
        num_workers=0,
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Qwen2.5-VL checkpoint of random weights."""
    from tvg.synthetic.templates import all_queries
    from tvg.synthetic.tiny import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    return write_tiny_checkpoint(
        folder,
        family="qwen2_5_vl",
        corpus=all_queries(),
        seed=0,
        num_layers=2,
        initializer_range=0.1,
    )
