"""Caches features of a frozen vision trunk on disk, so that training does not run the trunk."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import torch

from tvg.data.cache.errors import CorruptEntry
from tvg.data.cache.key import entry_key, file_identity
from tvg.data.cache.store import Entry, EntryStore
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder, VideoError
from tvg.data.video.sampling import FrameSampling
from tvg.model.vision import trunk_fingerprint
from tvg.types import EncodedClip, LeadIn, Segment

KIND = "features"


class FeatureCache:
    """Returns clips as features that `tvg-prepare` computed with a model's vision trunk.

    The key of an entry includes the trunk's exact weights, its compute precision and the processor
    settings. Features of one checkpoint are therefore never used with another.

    Args:
        folder: folder of all caches; features have their own sub-folder.
        checkpoint: folder of the model.
        dtype: compute precision of the trunk; features are always stored as bfloat16.
        loader: loads the frames that are the trunk's input.

    Raises:
        ValueError: `checkpoint` is None.
    """

    def __init__(
        self,
        *,
        folder: str | os.PathLike[str],
        checkpoint: str | None,
        dtype: str,
        loader: ClipLoader,
    ) -> None:
        if checkpoint is None:
            raise ValueError(
                "data.cache: cached features belong to one model: expected its folder as "
                "model.path, got null"
            )
        self.folder = Path(folder)
        self.checkpoint = Path(checkpoint)
        self.dtype = dtype
        self.loader = loader
        self.store = EntryStore(self.folder / KIND)

    @property
    def decoder(self) -> VideoDecoder:
        return self.loader.decoder

    @property
    def sampling(self) -> FrameSampling:
        return self.loader.sampling

    @functools.cached_property
    def model(self) -> str:
        """Fingerprint of everything in the model that determines an entry."""
        settings = hashlib.blake2b(digest_size=8)
        for path in sorted(self.checkpoint.glob("*processor_config.json")):
            settings.update(path.read_bytes())
        return f"{trunk_fingerprint(self.checkpoint)}/{self.dtype}/{settings.hexdigest()}"

    def key(self, path: Path, window: Segment | None, lead_in: LeadIn | None) -> str:
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
            model=self.model,
        )

    def load(
        self, path: Path, window: Segment | None = None, lead_in: LeadIn | None = None
    ) -> EncodedClip:
        """Returns a clip's features.

        Raises:
            ValueError: the features are missing or damaged; `tvg-prepare` creates them.
            VideoError: the clip has no readable file, or `tvg-prepare` failed to decode it.
        """
        key = self.key(path, window, lead_in)
        try:
            entry = self.store.read(key)
        except CorruptEntry as error:
            raise ValueError(
                f"{error}; run tvg-prepare with the same settings to rebuild it"
            ) from error
        if entry is None:
            self._check_possible(key, path, window, lead_in)
            raise ValueError(
                f"{path}: no features of this clip are stored in {self.store.folder} for the "
                f"vision trunk of {self.checkpoint} in {self.dtype} and this sampling: first run "
                "tvg-prepare with the same data, model and data/cache=features"
            )
        return _clip(entry)

    def keep(
        self, path: Path, window: Segment | None, lead_in: LeadIn | None, clip: EncodedClip
    ) -> Path:
        """Writes a clip's features and returns the file.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        key = self.key(path, window, lead_in)
        entry = self.store.write(key, *_entry(clip))
        self.store.forget_failure(key)
        return entry

    def note_failure(
        self, path: Path, window: Segment | None, lead_in: LeadIn | None, problem: str
    ) -> None:
        """Records why a clip cannot be decoded; `load` then raises VideoError with this problem.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        try:
            key = self.key(path, window, lead_in)
        except VideoError:  # no readable file: `load` raises the same error
            return
        self.store.note_failure(key, problem)

    def _check_possible(
        self, key: str, path: Path, window: Segment | None, lead_in: LeadIn | None
    ) -> None:
        """Raises VideoError if preparation cannot create features for a clip."""
        problem = self.store.failure(key)
        if problem is not None:
            raise VideoError(path, problem)
        info = self.decoder.probe(path)
        try:
            self.loader.frame_count_and_size(info, window, lead_in)
        except ValueError as error:
            raise VideoError(path, str(error)) from error


def _entry(clip: EncodedClip) -> Entry:
    tensors = {
        "features": clip.features.to(torch.bfloat16),
        "grid_thw": clip.grid_thw,
        "frame_times_s": clip.frame_times_s,
    }
    # repr is a float's shortest text that parses to the same float
    meta = {"sampled_fps": repr(clip.sampled_fps), "duration_s": repr(clip.duration_s)}
    return Entry(tensors, meta)


def _clip(entry: Entry) -> EncodedClip:
    return EncodedClip(
        features=entry.tensors["features"],
        grid_thw=entry.tensors["grid_thw"],
        sampled_fps=float(entry.meta["sampled_fps"]),
        frame_times_s=entry.tensors["frame_times_s"],
        duration_s=float(entry.meta["duration_s"]),
    )
