"""Fills the frame cache of a dataset once, before training."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from tvg.config.file_lock import locked
from tvg.data.cache.frames import Ensured, FrameCache
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoError, VideoInfo
from tvg.data.video.memory_limit import limit_memory
from tvg.preparation.pool import Failure, run_all
from tvg.preparation.probing import limited
from tvg.types import GroundingExample, LeadIn, Segment

ENTRY_OVERHEAD_BYTES = 1024  # upper bound of an entry's size without its tensors
FEW_CLIPS = 8  # up to this number, decoding is faster than starting workers
NUM_LOOKUP_THREADS = 8  # more than CPUs, because the threads wait for the disk
LOCK_NAME = ".prepare.lock"


class ClipRequest(NamedTuple):
    """A clip that examples need."""

    path: Path
    window: Segment | None = None
    lead_in: LeadIn | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The results of `prepare_frames`. Every entry is counted once, by its file."""

    written: int
    present: int
    rebuilt: list[str] = field(default_factory=list)  # files of damaged entries
    failures: dict[str, str] = field(default_factory=dict)  # video -> problem
    failed: dict[ClipRequest, str] = field(default_factory=dict)  # the same per clip
    num_bytes: int  # of all requested entries

    @property
    def num_entries(self) -> int:
        return self.written + self.present + len(self.rebuilt)


def unique_requests(examples: Iterable[GroundingExample]) -> list[ClipRequest]:
    """Returns the distinct clips that examples need, in the order of their first query."""
    return list(
        dict.fromkeys(
            ClipRequest(example.video_path, example.window, example.lead_in)
            for example in examples
            if example.video_path is not None
        )
    )


def estimated_bytes(
    requests: Iterable[ClipRequest], infos: Mapping[Path, VideoInfo | str], loader: ClipLoader
) -> int:
    """Returns an upper bound of the size of all entries, at most 1 KiB too large per entry.

    Files that cannot be read or do not contain the window count as 0 bytes.
    """
    return sum(_entry_bytes(request, infos.get(request.path), loader) for request in requests)


def missing_bytes(
    requests: Iterable[ClipRequest], infos: Mapping[Path, VideoInfo | str], cache: FrameCache
) -> int:
    """Returns `estimated_bytes` of the clips whose entries are not in the cache yet."""

    def needed(request: ClipRequest) -> int:
        try:
            is_there = cache.store.path(cache.key(*request)).is_file()
        except VideoError:
            return 0
        return 0 if is_there else _entry_bytes(request, infos.get(request.path), cache.loader)

    with ThreadPoolExecutor(NUM_LOOKUP_THREADS) as pool:
        return sum(pool.map(needed, requests))


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raises ValueError unless the disk of `folder` (which need not exist) has enough space."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise ValueError(
            f"{folder}: the disk cannot hold the cache: it needs {needed_bytes / 2**30:.2f} GiB, "
            f"{free_bytes / 2**30:.2f} GiB are free; choose another data.cache.folder, or lower "
            f"the fps or the pixels of data.clip.sampling"
        )


def prepare_frames(
    requests: Sequence[ClipRequest],
    cache: FrameCache,
    *,
    num_workers: int,
    timeout_s: float | None,
) -> Prepared:
    """Fills a cache: keeps intact entries and builds all others.

    Preparation can be stopped and restarted at any time, because entries are written atomically.
    Only one process at a time may prepare a folder. Training may read and write it meanwhile.

    Args:
        requests: the clips, from `unique_requests`.
        cache: the cache to fill, which also loads the clips.
        num_workers: decoding processes; 0 decodes in this process.
        timeout_s: maximum time for one clip in seconds; None: no limit.

    Raises:
        ValueError: another process is preparing this folder, or the folder cannot be written to
            (UnusableStore if this happens during preparation).
    """
    limit_s = timeout_s if num_workers == 0 else None  # workers are timed by the pool
    work = _Ensure(FrameCache(folder=cache.folder, loader=loader_with_limit(cache.loader, limit_s)))
    with locked_cache(cache.folder):
        cache.store.remove_leftovers()
        results: dict[ClipRequest, Ensured | Failure] = dict(_present(requests, cache))
        missing = [request for request in requests if request not in results]
        if missing:
            try:
                built = run_all(
                    work, missing, num_workers=num_workers, timeout_s=timeout_s, label="preparing"
                )
            finally:
                cache.store.remove_leftovers()
            results |= dict(zip(missing, built, strict=True))
    return _summary(requests, [results[request] for request in requests])


def _present(requests: Sequence[ClipRequest], cache: FrameCache) -> dict[ClipRequest, Ensured]:
    """Returns the intact entries. Uses threads, because worker processes would import PyTorch."""

    def entry(request: ClipRequest) -> Ensured | None:
        try:
            return cache.present(*request)
        except VideoError:  # reported when the entry is built
            return None

    with ThreadPoolExecutor(NUM_LOOKUP_THREADS) as pool:
        entries = pool.map(entry, requests)
        return {r: found for r, found in zip(requests, entries, strict=True) if found is not None}


def workers_worth(num_items: int, num_workers: int, timeout_s: float | None) -> int:
    """Returns how many processes to start: 0 for a few clips, which are faster without workers.

    Without a time limit, workers are always used, because a decoder that hangs or crashes would
    otherwise stop this process.
    """
    return 0 if timeout_s is not None and num_items <= FEW_CLIPS else num_workers


def _summary(requests: Sequence[ClipRequest], results: Sequence[Ensured | Failure]) -> Prepared:
    failed: dict[ClipRequest, str] = {}
    entries: dict[Path, Ensured] = {}
    for request, result in zip(requests, results, strict=True):
        if isinstance(result, Failure):
            failed[request] = result.problem
            continue
        # Copies of one file share an entry, which is "present" for the second copy.
        before = entries.get(result.path)
        if before is None or before.state == "present":
            entries[result.path] = result
    failures: dict[str, str] = {}
    for request, problem in failed.items():
        failures.setdefault(str(request.path), problem)
    states = [entry.state for entry in entries.values()]
    return Prepared(
        written=states.count("written"),
        present=states.count("present"),
        rebuilt=sorted(str(path) for path, entry in entries.items() if entry.state == "rebuilt"),
        failures=failures,
        failed=failed,
        num_bytes=sum(entry.num_bytes for entry in entries.values()),
    )


def _entry_bytes(request: ClipRequest, info: VideoInfo | str | None, loader: ClipLoader) -> int:
    if info is None or isinstance(info, str):
        return 0
    try:
        num_frames, height, width = loader.frame_count_and_size(
            info, request.window, request.lead_in
        )
    except ValueError:  # loading the clip reports the error
        return 0
    # uint8 pixels, float64 times
    return num_frames * (3 * height * width + 8) + ENTRY_OVERHEAD_BYTES


@contextmanager
def locked_cache(folder: Path) -> Iterator[None]:
    """Creates a cache folder and locks it during the `with` block.

    Raises:
        ValueError: another process is preparing this cache, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot be written to ({error.strerror}); expected a folder for the cache "
            f"(data.cache.folder)"
        ) from None
    with locked(folder / LOCK_NAME, f"data.cache.folder: {folder}"):
        yield


def loader_with_limit(loader: ClipLoader, timeout_s: float | None) -> ClipLoader:
    """Returns the loader with the given time limit; None: no limit."""
    return ClipLoader(
        sampling=loader.sampling, decoder=limited(loader.decoder, None), timeout_s=timeout_s
    )


@dataclass(frozen=True)
class _Ensure:
    cache: FrameCache

    def start(self) -> None:
        torch.set_num_threads(1)  # there is one process per CPU, so threads would compete
        self.cache.decoder.import_library()
        limit_memory(self.cache.decoder.memory_mib)

    def __call__(self, request: ClipRequest) -> Ensured:
        return self.cache.ensure(*request)
