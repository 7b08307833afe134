"""Computes the key of a cache entry: a digest of everything that determines the content.

If a setting were missing from the key, changing it would still return old entries. The key
therefore includes everything that `ClipLoader.load` uses, except the decoder: all backends give the
same pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict

from tvg.data.video.decode import VideoError, check_file
from tvg.data.video.sampling import FrameSampling
from tvg.types import LeadIn, Segment

VERSION = 2  # increase it if the stored content or its computation changes
EDGE_BYTES = 64 * 1024  # hashed at a file's beginning and end, where headers and indices are


def file_identity(path: str | os.PathLike[str]) -> dict[str, str | int]:
    """Returns the identity of a video: size, modification time and a hash of both ends.

    The path is not included, so a moved folder keeps its cache.

    Raises:
        VideoError: there is no readable file.
    """
    checked = check_file(path)
    try:
        with checked.open("rb") as file:
            status = os.fstat(file.fileno())
            edges = hashlib.blake2b(file.read(EDGE_BYTES), digest_size=16)
            file.seek(max(0, status.st_size - EDGE_BYTES))
            edges.update(file.read(EDGE_BYTES))
    except OSError as error:  # a failing disk, or the file was removed meanwhile
        raise VideoError(path, f"cannot be read ({error.strerror})") from error
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "edges": edges.hexdigest(),
    }


def entry_key(
    *,
    kind: str,
    identity: Mapping[str, str | int],
    window: Segment | None,
    lead_in: LeadIn | None,
    sampling: FrameSampling,
    model: str | None,
) -> str:
    """Returns the name of an entry: 40 hexadecimal digits.

    Args:
        kind: content of the entry ("frames", "features").
        identity: identity of the video, from `file_identity`.
        window: the part of the file that is shown.
        lead_in: filler frames before the clip.
        sampling: number and size of the frames.
        model: fingerprint of the model that computed the entry; None if there is none.
    """
    content = {
        "version": VERSION,
        "kind": kind,
        "identity": dict(identity),
        # as floats: 1 and 1.0 are the same second
        "window": None if window is None else [float(second) for second in window],
        "lead_in": (
            None if lead_in is None else [float(lead_in.length_s), lead_in.kind, lead_in.seed]
        ),
        "sampling": asdict(sampling),
        "model": model,
    }
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
