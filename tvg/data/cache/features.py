"""Features of a frozen vision trunk, from disk: training then runs no trunk at all."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import torch

from tvg.data.cache.errors import CorruptEntry
from tvg.data.cache.key import entry_key, file_identity
from tvg.data.cache.store import Entry, EntryStore
from tvg.data.clip import ClipLoader
from tvg.data.decode import VideoDecoder, VideoError
from tvg.data.sampling import FrameSampling
from tvg.model.vision import trunk_fingerprint
from tvg.types import EncodedClip, LeadIn, Segment

KIND = "features"


class FeatureCache:
    """Gives clips as features that `tvg-prepare` has computed with one model's vision trunk.

    Entries belong to that trunk (its weights, byte for byte), to the precision it computed in and
    to the processor's settings: another checkpoint finds none of them.

    Args:
        folder: of all caches; features have a sub-folder of their own.
        checkpoint: folder of the model.
        dtype: in which the trunk computes; kept is always bfloat16.
        loader: what gives the frames that the trunk is shown.

    Raises:
        ValueError: there is no checkpoint to compute features with.
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
                "data.cache: features are of one model: model.path has to name its folder, got null"
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
        """Stands for all of the model that decides an entry."""
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
            ValueError: there are none, or their file was damaged; both are mended by `tvg-prepare`.
            VideoError: there can be none: no readable file, or `tvg-prepare` failed to decode it.
        """
        key = self.key(path, window, lead_in)
        try:
            entry = self.store.read(key)
        except CorruptEntry as error:
            raise ValueError(f"{error}; tvg-prepare with the same settings rebuilds it") from error
        if entry is None:
            self._check_possible(key, path, window, lead_in)
            raise ValueError(
                f"{path}: no features of this clip are kept in {self.store.folder} for the vision "
                f"trunk of {self.checkpoint} in {self.dtype} and this sampling: run tvg-prepare "
                "with the same data, model and data/cache=features first"
            )
        return _clip(entry)

    def keep(
        self, path: Path, window: Segment | None, lead_in: LeadIn | None, clip: EncodedClip
    ) -> Path:
        """Writes a clip's features and returns their file.

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
        """Records the problem of a clip; loading it raises the same error as decoding does.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        try:
            key = self.key(path, window, lead_in)
        except VideoError:  # no readable file, which shows again whenever it is loaded
            return
        self.store.note_failure(key, problem)

    def _check_possible(
        self, key: str, path: Path, window: Segment | None, lead_in: LeadIn | None
    ) -> None:
        """Raises VideoError where a clip can have no features, however often it is prepared."""
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
    # repr gives a float's shortest text that reads back as the same float
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
