"""Tests of safe opening: file names are not URLs, playlists are not followed, sizes are limited."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tvg.data.video.decode import VideoDecoder, VideoError
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.data.video.media import NO_LIMITS, MediaLimits, open_media
from tvg.data.video.pyav_decoder import PyAVDecoder
from tvg.data.video.time_limit import TimeLimitedDecoder
from tvg.preparation.probing import probe_videos

BACKENDS = {"pyav": PyAVDecoder, "decord": DecordDecoder}
PROJECT = Path(__file__).resolve().parents[3]
LIMITS = MediaLimits(max_frame_pixels=64 * 48, max_frames=60, max_duration_s=2.4)

PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile plain.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\nplain.ts\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
    "<BaseURL>plain.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


def decoder(backend: str, limits: MediaLimits | None = None) -> VideoDecoder:
    make = BACKENDS[backend]
    return make(num_threads=1) if limits is None else make(num_threads=1, limits=limits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", ["2024-01-01T12:30.mp4", "a:b.mp4", "x%03d.mp4", "what?.mp4", "a#b.mp4", "concat:a.mp4"]
)
def test_a_file_name_is_not_a_url(
    name: str,
    backend: str,
    tmp_path: Path,
    videos: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(videos["plain"], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    expected = decoder(backend).read(videos["plain"], [3, 40])
    for path in (name, f"./{name}", Path(".") / name, tmp_path / name):
        assert np.array_equal(decoder(backend).read(path, [3, 40]), expected), path


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_name_may_have_any_bytes(
    backend: str, tmp_path: Path, videos: dict[str, Path]
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    shutil.copy(videos["plain"], path)
    assert decoder(backend).probe(path).num_frames == 60


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extension", ["mp4", "m3u8", "ffconcat", "sdp", "mpd", "ts"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_not_followed(
    kind: str, extension: str, backend: str, tmp_path: Path, videos: dict[str, Path]
) -> None:
    shutil.copy(videos["plain"], tmp_path / "plain.mp4")
    shutil.copy(videos["transport"], tmp_path / "plain.ts")
    path = tmp_path / f"rel.{extension}"
    path.write_text(PLAYLISTS[kind])
    read = {file: file.stat().st_atime_ns for file in tmp_path.glob("plain.*")}
    for file in read:  # older than the last change, so that a read updates it
        os.utime(file, ns=(0, file.stat().st_mtime_ns))
    with pytest.raises(VideoError, match="expected a") as caught:
        decoder(backend).probe(path)
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)
    assert all(file.stat().st_atime_ns == 0 for file in read)


def test_an_image_sequence_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "%03d.png").write_bytes(b"x")
    with pytest.raises(VideoError, match="playlists and image sequences are not followed"):
        decoder("pyav").probe(tmp_path / "%03d.png")


def test_decord_gets_only_formats_known_by_their_first_bytes(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import decord

    def opened(*_: object, **__: object) -> None:
        pytest.fail("decord was used, although it would detect the format again")

    monkeypatch.setattr(decord, "VideoReader", opened)
    assert decoder("decord").probe(videos["transport"]).num_frames == 60


def test_titles_in_other_encodings_are_ignored(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    import av

    source = write_video(tmp_path / "plain.mp4", num_frames=5)
    path = tmp_path / "titled.mp4"
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        copy = writing.add_stream_from_template(reading.streams.video[0])
        writing.metadata["title"] = "EEEE"
        for packet in reading.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                writing.mux(packet)
    data = path.read_bytes()
    assert b"EEEE" in data
    path.write_bytes(data.replace(b"EEEE", b"caf\xe9"))
    assert decoder("pyav").probe(path).num_frames == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_at_the_limits_is_read(backend: str, videos: dict[str, Path]) -> None:
    assert decoder(backend, LIMITS).read(videos["plain"], [0, 59]).shape == (2, 48, 64, 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["plain", "matroska", "avi", "transport"])
@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({"max_frame_pixels": 64 * 48 - 1}, "64x48 = 3072 pixels; expected at most 3071"),
        ({"max_frames": 59}, "holds 60 frames or more; expected at most 59"),
        ({"max_duration_s": 2.3}, "lasts 2 s; expected at most 2.3 s"),
    ],
)
def test_a_file_above_a_limit_is_refused_with_the_key(
    limits: dict[str, float], found: str, name: str, backend: str, videos: dict[str, Path]
) -> None:
    changed = MediaLimits(**{**vars(LIMITS), **limits})  # type: ignore[arg-type]
    with pytest.raises(VideoError, match=re.escape(found)) as caught:
        decoder(backend, changed).probe(videos[name])
    assert f"data.decoder.limits.{next(iter(limits))}" in str(caught.value)


def test_limits_are_checked_before_the_file_is_opened(videos: dict[str, Path]) -> None:
    with (
        pytest.raises(VideoError, match="64x48"),
        open_media(videos["plain"], MediaLimits(**{**vars(LIMITS), "max_frame_pixels": 16})),
    ):
        pytest.fail("the file was opened")


def test_larger_frames_later_in_a_stream_are_not_decoded(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    small = write_video(tmp_path / "small.ts", num_frames=20)
    large = write_video(tmp_path / "large.ts", num_frames=20, width=256, height=192)
    path = tmp_path / "grows.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(VideoError, match="changes its frame size"):
        decoder("pyav").read(path, [0, 30])
    with pytest.raises(VideoError, match="cannot be decoded up to frame"):
        decoder("pyav", LIMITS).read(path, [0, 30])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of three frames of 8000 x 8000 pixels, which need 100 MB each as yuv420p."""
    import av

    path = tmp_path_factory.mktemp("wide") / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 8000, 8000, "yuv420p"
        frame = av.VideoFrame(8000, 8000, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for pts in range(3):
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


MEMORY = "takes more than 150 MiB of memory to decode (data.decoder.limits.memory_mib)"


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit needs Linux")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_exceeds_the_memory_limit_is_refused(
    backend: str, wide: Path, videos: dict[str, Path]
) -> None:
    limits = dataclasses.replace(NO_LIMITS, memory_mib=150)
    limited = TimeLimitedDecoder(decoder=decoder(backend, limits), timeout_s=60.0)
    expected = decoder(backend).read(videos["plain"], [3, 40])
    for _ in range(2):
        with pytest.raises(VideoError, match=re.escape(MEMORY)) as caught:
            limited.read(wide, [0, 2])
        assert caught.value.path == str(wide)
        assert np.array_equal(limited.read(videos["plain"], [3, 40]), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit needs Linux")
def test_probing_workers_apply_the_memory_limit(wide: Path, videos: dict[str, Path]) -> None:
    limits = dataclasses.replace(NO_LIMITS, memory_mib=150)
    paths = [wide, videos["plain"]]
    found = probe_videos(paths, decoder("pyav", limits), num_workers=1, timeout_s=60.0)
    assert str(found[wide]).startswith(MEMORY)
    assert found[videos["plain"]] == decoder("pyav").probe(videos["plain"])


def test_shipped_limits_accept_8k_and_refuse_8192_squared() -> None:
    import yaml

    settings = yaml.safe_load((PROJECT / "conf/data/decoder/_limits.yaml").read_text())["limits"]
    assert settings.pop("_target_") == "tvg.data.video.media.MediaLimits"
    limits = MediaLimits(**settings)
    for width, height in ((7680, 4320), (8192, 4320)):
        limits.check_size(Path("v.mp4"), width, height)
    with pytest.raises(VideoError, match="max_frame_pixels"):
        limits.check_size(Path("v.mp4"), 8192, 8192)


@pytest.mark.parametrize(
    "limit",
    [
        {"max_frame_pixels": 0},
        {"max_frame_pixels": 2**31},
        {"max_frames": 0},
        {"max_duration_s": -1.0},
        {"memory_mib": 0},
    ],
)
def test_impossible_limits_are_refused(limit: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(limit))} must be"):
        MediaLimits(**{**vars(LIMITS), **limit})  # type: ignore[arg-type]
