"""Fills a feature cache: workers decode clips, and this process runs the vision trunk on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tvg.core.worker_process import WORKERS
from tvg.data.cache.errors import CorruptEntry
from tvg.data.cache.features import FeatureCache
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoError, VideoInfo
from tvg.model.families import family_of
from tvg.model.families.patching import Patching, clip_patches
from tvg.model.policy import Policy
from tvg.model.vision import encode_trunk
from tvg.preparation.frames import (
    ClipRequest,
    Prepared,
    loader_with_limit,
    locked_cache,
    workers_worth,
)
from tvg.preparation.pool import Failure, attempt
from tvg.types import EncodedClip, VideoClip


def prepare_features(
    requests: Sequence[ClipRequest],
    cache: FeatureCache,
    *,
    policy: Policy,
    processor: Any,
    num_workers: int,
    timeout_s: float | None,
) -> Prepared:
    """Computes the missing features; may be interrupted and restarted at any time.

    Args:
        requests: the clips, each once.
        cache: stores the features.
        policy: the model of the cache's checkpoint, on the device that computes.
        processor: cuts frames into patches.
        num_workers: decoding processes, if enough clips are missing; 0 decodes in this process.
        timeout_s: time limit of the decoder per clip; None: no limit.

    Raises:
        ValueError: another process is preparing this folder, or the processor belongs to another
            family.
    """
    patching = family_of(policy.model.config).patching(processor)
    with locked_cache(cache.folder):
        cache.store.remove_leftovers()
        present, rebuilt, to_do = _missing(requests, cache)
        failed: dict[ClipRequest, str] = {}
        with tqdm(total=len(requests), initial=len(present), unit="video", desc="encoding") as bar:
            loader = loader_with_limit(cache.loader, timeout_s)
            num_workers = workers_worth(len(to_do), num_workers, timeout_s)
            for request, clip in _clips(to_do, loader, min(num_workers, len(to_do))):
                if isinstance(clip, Failure):
                    failed[request] = clip.problem
                    cache.note_failure(*request, clip.problem)
                else:
                    cache.keep(*request, _encode(policy, patching, clip))
                bar.update()
        kept = [request for request in requests if request not in failed]
        num_bytes = sum(cache.store.path(cache.key(*r)).stat().st_size for r in kept)
    rebuilt_files = [file for request, file in rebuilt.items() if request not in failed]
    return Prepared(
        written=len(kept) - len(present) - len(rebuilt_files),
        present=len(present),
        rebuilt=rebuilt_files,
        failures={str(request.path): problem for request, problem in failed.items()},
        failed=failed,
        num_bytes=num_bytes,
    )


def missing_feature_bytes(
    requests: Sequence[ClipRequest],
    infos: Mapping[Path, VideoInfo | str],
    cache: FeatureCache,
    *,
    config: Any,
) -> int:
    """Returns the total size in bytes of the missing entries, within 1 KiB per entry.

    Args:
        requests: the clips.
        infos: the properties of each file, or its problem.
        cache: the cache to fill.
        config: config of the model.
    """
    vision = config.vision_config
    family = family_of(config)
    values = family.feature_width(vision)  # per patch
    total = 0
    for request in requests:
        info = infos.get(request.path)
        try:
            if isinstance(info, str) or info is None or cache.store.verify(cache.key(*request)):
                continue
            num, height, width = cache.loader.frame_count_and_size(
                info, request.window, request.lead_in
            )
        except ValueError:  # damaged, unreadable, or without the window: loading reports it
            continue
        patches = family.num_patches(vision, num, height, width)
        total += patches * values * 2 + 1024
    return total


def _missing(
    requests: Sequence[ClipRequest], cache: FeatureCache
) -> tuple[list[ClipRequest], dict[ClipRequest, str], list[ClipRequest]]:
    """Returns clips with intact entries, files of damaged entries, and clips to encode."""
    present: list[ClipRequest] = []
    rebuilt: dict[ClipRequest, str] = {}
    to_do: list[ClipRequest] = []
    for request in requests:
        try:
            is_there = cache.store.verify(cache.key(*request))
        except CorruptEntry as error:
            rebuilt[request] = str(error.path)
            is_there = False
        except VideoError:
            is_there = False  # the error is raised again and counted when the clip is loaded
        (present if is_there else to_do).append(request)
    return present, rebuilt, to_do


class _Clips(Dataset["_Loaded"]):
    def __init__(self, requests: Sequence[ClipRequest], loader: ClipLoader) -> None:
        self.requests, self.loader = requests, loader

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> _Loaded:
        request = self.requests[index]
        return _Loaded(request, attempt(self._load, request))

    def _load(self, request: ClipRequest) -> VideoClip:
        return self.loader.load(*request)


class _Loaded(NamedTuple):
    request: ClipRequest
    clip: VideoClip | Failure


def _clips(
    requests: Sequence[ClipRequest], loader: ClipLoader, num_workers: int
) -> Iterator[_Loaded]:
    options: dict[str, Any] = {"batch_size": None, "num_workers": num_workers}
    if num_workers > 0:
        # No fork: the threads of decoders do not survive it.
        options |= {"multiprocessing_context": WORKERS, "prefetch_factor": 2}
    return iter(DataLoader(_Clips(requests, loader), **options))


def _encode(policy: Policy, patching: Patching, clip: VideoClip) -> EncodedClip:
    pixels, grid_thw = clip_patches([clip], patching)
    with torch.no_grad():
        features = encode_trunk(policy.model, pixels.to(policy.device), grid_thw.to(policy.device))
    return EncodedClip(
        features=features.to("cpu", torch.bfloat16),
        grid_thw=grid_thw[0],
        sampled_fps=clip.sampled_fps,
        frame_times_s=clip.frame_times_s,
        duration_s=clip.duration_s,
    )
