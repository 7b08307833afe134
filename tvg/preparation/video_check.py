"""Checks every video of a dataset and fills its cache of frames or features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvg.data.cache.features import FeatureCache
from tvg.data.cache.frames import FrameCache
from tvg.data.dataset import ClipSource
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoInfo
from tvg.model.policy import Policy
from tvg.preparation.features import missing_feature_bytes, prepare_features
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
from tvg.preparation.inspection import unusable_clips
from tvg.preparation.inspection_report import size_text
from tvg.preparation.probing import probe_videos
from tvg.types import GroundingExample

log = logging.getLogger(__name__)

Model = tuple[Policy, Any]  # policy and processor


@dataclass(frozen=True, kw_only=True)
class Videos:
    """The results of checking the videos."""

    infos: dict[Path, VideoInfo | str]  # a string describes the problem of a file
    failed: dict[ClipRequest, str]
    kind: str  # of the cache
    prepared: Prepared | None  # None: no cache was filled

    def as_json(self) -> dict[str, Any]:
        """Returns the parts of the report that describe files.

        The report does not distinguish entries written now and earlier, so that a resumed
        preparation reports the same as an uninterrupted one.
        """
        done = self.prepared
        readable = (path for path, info in self.infos.items() if isinstance(info, VideoInfo))
        return {
            "cache": {
                "kind": self.kind,
                "entries": done.num_entries if done is not None else 0,
                "rebuilt": done.rebuilt if done is not None else [],
            },
            "bytes": done.num_bytes if done is not None else 0,
            "video_bytes": sum(path.stat().st_size for path in readable),
        }


def look_at_videos(
    examples: Iterable[GroundingExample],
    clips: ClipSource,
    *,
    num_workers: int,
    timeout_s: float | None,
    check_only: bool,
    load_model: Callable[[], Model],
) -> Videos:
    """Probes every video, then loads every clip into the cache, if there is one.

    Args:
        examples: examples whose clips are needed; a clip of several examples is loaded once.
        clips: a loader, or a cache in front of one.
        num_workers: decoding processes; 0 decodes in this process.
        timeout_s: time limit per video; None: no limit.
        check_only: do not fill the cache.
        load_model: returns the model whose features are cached, on the device that computes them.

    Raises:
        ValueError: the disk cannot hold the cache, or its folder cannot be used.
    """
    loader = clips if isinstance(clips, ClipLoader) else getattr(clips, "loader", None)
    assert isinstance(loader, ClipLoader), type(clips)
    requests = unique_requests(examples)
    paths = [request.path for request in requests]
    workers: dict[str, Any] = {"num_workers": num_workers, "timeout_s": timeout_s}
    few = {**workers, "num_workers": workers_worth(len(set(paths)), num_workers, timeout_s)}
    infos = probe_videos(paths, loader.decoder, **few) if paths else {}
    failed = unusable_clips(requests, infos, loader)
    good = [request for request in requests if request not in failed]
    prepared = None
    if good and not check_only and isinstance(clips, FrameCache):
        total, needed = estimated_bytes(good, infos, loader), missing_bytes(good, infos, clips)
        _announce(clips.folder, len(good), needed, f", {size_text(total)} in all")
        few["num_workers"] = workers_worth(len(good), num_workers, timeout_s)
        prepared = prepare_frames(good, clips, **few)
    elif good and not check_only and isinstance(clips, FeatureCache):
        prepared = _prepare_features(good, infos, clips, load_model(), **workers)
    if prepared is not None:
        failed |= prepared.failed
    kinds = {FrameCache: "frames", FeatureCache: "features"}
    return Videos(
        infos=infos, failed=failed, kind=kinds.get(type(clips), "none"), prepared=prepared
    )


def _prepare_features(
    requests: Sequence[ClipRequest],
    infos: Mapping[Path, VideoInfo | str],
    cache: FeatureCache,
    model: Model,
    *,
    num_workers: int,
    timeout_s: float | None,
) -> Prepared:
    policy, processor = model
    needed = missing_feature_bytes(requests, infos, cache, config=policy.model.config)
    _announce(cache.folder, len(requests), needed, "")
    return prepare_features(
        requests,
        cache,
        policy=policy,
        processor=processor,
        num_workers=num_workers,
        timeout_s=timeout_s,
    )


def _announce(folder: Path, num_clips: int, needed_bytes: int, more: str) -> None:
    log.info(
        "cache %s: %d clips, %s to be written%s", folder, num_clips, size_text(needed_bytes), more
    )
    check_disk(folder, needed_bytes)
