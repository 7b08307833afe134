"""Caches sampled and resized frames on disk."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from tvg.data.cache.errors import CorruptEntry, UnusableStore
from tvg.data.cache.key import entry_key, file_identity
from tvg.data.cache.store import Entry, EntryStore
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder
from tvg.data.video.sampling import FrameSampling
from tvg.types import LeadIn, Segment, VideoClip

logger = logging.getLogger(__name__)

KIND = "frames"
# Errors that disable the cache but do not stop training: a full disk, missing permissions, a
# missing folder, and an unfinished entry that another machine removed as a leftover.
_UNUSABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ESTALE, errno.ENOENT),
}


class Ensured(NamedTuple):
    """An entry that exists in the cache."""

    path: Path
    state: Literal["present", "written", "rebuilt"]
    num_bytes: int


class FrameCache:
    """Returns the same clips as `loader`, bit for bit, and stores them on disk.

    A damaged entry is rebuilt with a warning. If the folder cannot be read or written, the cache
    warns once and decodes the clips that it cannot read.

    Args:
        folder: folder of all caches; frames have their own sub-folder.
        loader: loads clips that are not stored yet.
    """

    def __init__(self, *, folder: str | os.PathLike[str], loader: ClipLoader) -> None:
        self.folder = Path(folder)
        self.loader = loader
        self.store = EntryStore(self.folder / KIND)
        self._is_usable = True

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
            VideoError: as in `ClipLoader.load`.
        """
        key = self.key(path, window, lead_in)
        try:
            entry = self.store.read(key)
        except CorruptEntry as error:
            logger.warning("%s; the entry is rebuilt", error)
            entry = None
        except OSError as error:
            self._do_without(error)
            entry = None
        if entry is not None:
            return _clip(entry)
        clip = self.loader.load(path, window, lead_in)
        if self._is_usable:
            try:
                self.store.write(key, *_entry(clip))
            except OSError as error:
                self._do_without(error)
        return clip

    def ensure(
        self,
        path: str | os.PathLike[str],
        window: Segment | None = None,
        lead_in: LeadIn | None = None,
    ) -> Ensured:
        """Builds the entry of a clip unless an intact one exists.

        Raises:
            VideoError: as in `ClipLoader.load`.
            UnusableStore: the folder cannot be read or written to, or the disk is full.
        """
        key = self.key(path, window, lead_in)
        try:
            state = self._state(key)
            if state != "present":
                self.store.write(key, *_entry(self.loader.load(path, window, lead_in)))
            entry = self.store.path(key)
            return Ensured(entry, state, entry.stat().st_size)
        except OSError as error:  # errors of the video are VideoErrors
            raise UnusableStore(
                f"{self.store.folder}: the cache cannot be used ({error.strerror})"
            ) from error

    def present(
        self,
        path: str | os.PathLike[str],
        window: Segment | None = None,
        lead_in: LeadIn | None = None,
    ) -> Ensured | None:
        """Returns the entry of a clip if it exists and is intact, otherwise None. Builds nothing.

        Raises:
            VideoError: there is no readable file.
            UnusableStore: the folder cannot be read.
        """
        key = self.key(path, window, lead_in)
        try:
            if self._state(key) != "present":
                return None
            entry = self.store.path(key)
            return Ensured(entry, "present", entry.stat().st_size)
        except OSError as error:
            raise UnusableStore(
                f"{self.store.folder}: the cache cannot be used ({error.strerror})"
            ) from error

    def _state(self, key: str) -> Literal["present", "written", "rebuilt"]:
        """Returns the state of an entry, or the state it will have once built."""
        try:
            return "present" if self.store.verify(key) else "written"
        except CorruptEntry:
            return "rebuilt"

    def _do_without(self, error: OSError) -> None:
        """Warns once that the cache is unusable; re-raises errors that must stop the run."""
        if error.errno not in _UNUSABLE:
            raise error
        if self._is_usable:
            logger.warning(
                "%s: the cache cannot be used (%s); missing clips are decoded",
                self.store.folder,
                error.strerror,
            )
        self._is_usable = False


def _entry(clip: VideoClip) -> Entry:
    tensors = {"frames": clip.frames, "frame_times_s": clip.frame_times_s}
    # repr is a float's shortest text that parses to the same float
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
