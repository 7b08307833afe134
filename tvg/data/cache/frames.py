"""Sampled and resized frames from disk, where they were loaded before."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from tvg.data.cache.key import entry_key, file_identity
from tvg.data.cache.store import CorruptEntry, Entry, EntryStore, NotWritable
from tvg.data.clip import ClipLoader
from tvg.data.decode import VideoDecoder
from tvg.data.sampling import FrameSampling
from tvg.types import LeadIn, Segment, VideoClip

logger = logging.getLogger(__name__)

KIND = "frames"
# What stops a cache from growing, but no training: a full disk, a folder of somebody else.
_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class Ensured(NamedTuple):
    """An entry that is there now."""

    path: Path
    state: Literal["present", "written", "rebuilt"]
    num_bytes: int


class FrameCache:
    """Loads clips as its loader does, to the last bit, and keeps them.

    An entry that was damaged is named in a warning and built again. Where nothing can be written,
    one warning says so and clips are decoded as without a cache.

    Args:
        folder: of all caches; frames have a sub-folder of their own.
        loader: what loads a clip that is not kept yet.
    """

    def __init__(self, *, folder: str | os.PathLike[str], loader: ClipLoader) -> None:
        self.folder = Path(folder)
        self.loader = loader
        self.store = EntryStore(self.folder / KIND)
        self._is_writable = True

    @property
    def decoder(self) -> VideoDecoder:
        return self.loader.decoder

    @property
    def sampling(self) -> FrameSampling:
        return self.loader.sampling

    def key(
        self,
        path: str | os.PathLike[str],
        window: Segment | None = None,
        lead_in: LeadIn | None = None,
    ) -> str:
        """Returns the key of a clip.

        Raises:
            VideoError: there is no readable file.
        """
        return entry_key(
            kind=KIND,
            identity=file_identity(path),
            window=window,
            lead_in=lead_in,
            sampling=self.sampling,
            model=None,
        )

    def load(
        self,
        path: str | os.PathLike[str],
        window: Segment | None = None,
        lead_in: LeadIn | None = None,
    ) -> VideoClip:
        """Returns the clip that `ClipLoader.load` returns.

        Raises:
            VideoError: as the loader does.
        """
        key = self.key(path, window, lead_in)
        try:
            entry = self.store.read(key)
        except CorruptEntry as error:
            logger.warning("%s; it is built again", error)
            entry = None
        if entry is not None:
            return _clip(entry)
        clip = self.loader.load(path, window, lead_in)
        self._keep(key, clip)
        return clip

    def ensure(
        self,
        path: str | os.PathLike[str],
        window: Segment | None = None,
        lead_in: LeadIn | None = None,
    ) -> Ensured:
        """Builds the entry of a clip unless it is there and whole.

        Raises:
            VideoError: as the loader does.
            NotWritable: the folder cannot be written to, or the disk is full.
        """
        key = self.key(path, window, lead_in)
        entry = self.store.path(key)
        state: Literal["present", "written", "rebuilt"] = "written"
        try:
            if self.store.verify(key):
                return Ensured(entry, "present", entry.stat().st_size)
        except CorruptEntry:
            state = "rebuilt"
        clip = self.loader.load(path, window, lead_in)
        try:
            self.store.write(key, *_entry(clip))
        except OSError as error:
            raise NotWritable(
                f"{self.store.folder}: the cache cannot be written ({error.strerror})"
            ) from error
        return Ensured(entry, state, entry.stat().st_size)

    def _keep(self, key: str, clip: VideoClip) -> None:
        if not self._is_writable:
            return
        try:
            self.store.write(key, *_entry(clip))
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            self._is_writable = False
            logger.warning(
                "%s: nothing more can be kept here (%s); clips that are missing are decoded",
                self.store.folder,
                error.strerror,
            )


def _entry(clip: VideoClip) -> Entry:
    tensors = {"frames": clip.frames, "frame_times_s": clip.frame_times_s}
    # repr gives a float's shortest text that reads back as the same float
    meta = {"sampled_fps": repr(clip.sampled_fps), "duration_s": repr(clip.duration_s)}
    return Entry(tensors, meta)


def _clip(entry: Entry) -> VideoClip:
    frames, frame_times_s = entry.tensors["frames"], entry.tensors["frame_times_s"]
    assert frames.dtype == torch.uint8, frames.dtype
    assert frame_times_s.dtype == torch.float64, frame_times_s.dtype
    return VideoClip(
        frames=frames,
        sampled_fps=float(entry.meta["sampled_fps"]),
        frame_times_s=frame_times_s,
        duration_s=float(entry.meta["duration_s"]),
    )
