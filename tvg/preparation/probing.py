"""Probes every video file of a dataset, in processes that do not import PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tvg.data.video.decode import VideoDecoder, VideoInfo
from tvg.data.video.memory_limit import limit_memory
from tvg.data.video.time_limit import TimeLimitedDecoder
from tvg.preparation.pool import Failure, run_all


def probe_videos(
    paths: Iterable[Path], decoder: VideoDecoder, *, num_workers: int, timeout_s: float | None
) -> dict[Path, VideoInfo | str]:
    """Returns the info of each file, or its problem as a string.

    Args:
        paths: files; each is probed once.
        decoder: opens the files.
        num_workers: worker processes; 0 probes in this process.
        timeout_s: maximum time for one file in seconds; None: no limit.
    """
    unique = list(dict.fromkeys(paths))
    work = _Probe(limited(decoder, timeout_s if num_workers == 0 else None))
    results = run_all(
        work, unique, num_workers=num_workers, timeout_s=timeout_s, label="probing videos"
    )
    return {
        path: result.problem if isinstance(result, Failure) else result
        for path, result in zip(unique, results, strict=True)
    }


def limited(decoder: VideoDecoder, timeout_s: float | None) -> VideoDecoder:
    """Returns the decoder with the given time limit; None: no limit."""
    bare = decoder.decoder if isinstance(decoder, TimeLimitedDecoder) else decoder
    return bare if timeout_s is None else TimeLimitedDecoder(decoder=bare, timeout_s=timeout_s)


@dataclass(frozen=True)
class _Probe:
    decoder: VideoDecoder

    def start(self) -> None:
        self.decoder.import_library()
        limit_memory(self.decoder.memory_mib)

    def __call__(self, path: Path) -> VideoInfo:
        return self.decoder.probe(path)
