"""Adds filler frames before every clip, so that moments occur later than in training.

The older release tests out-of-distribution grounding this way. A model that has only memorised
typical positions fails if all moments are shifted by some seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from tvg.types import GroundingExample, LeadIn, Segment

Kind = Literal["blank", "noise", "freeze", "random"]

_KINDS = ("blank", "noise", "freeze", "random")
_KEY = "data.padding"  # config key of these settings, for messages


def pad_examples(
    examples: Sequence[GroundingExample], *, pad_s: float, kind: Kind, seed: int
) -> list[GroundingExample]:
    """Adds a lead-in of filler frames to each clip and shifts the annotations accordingly.

    The lead-in's length is uniform in [0, pad_s). It depends only on the seed and the clip (video
    and window). All queries of a clip therefore share it, in any order and selection of examples.
    Loading rounds it to full frames of the file, so a moment may be off by half a frame.

    Args:
        examples: examples without a lead-in. Segment, hint and prediction are shifted, and the
            duration is extended.
        pad_s: longest lead-in in seconds; 0 changes nothing.
        kind: kind of the filler frames; `random` draws blank or noise for each clip.
        seed: seed of lengths, kinds and pixels.

    Raises:
        ValueError: `pad_s` is negative or not finite, or `kind` is unknown.
    """
    if not 0 <= pad_s < math.inf:
        raise ValueError(f"{_KEY}.pad_s must be 0 s or more: got {pad_s}")
    if kind not in _KINDS:
        raise ValueError(f"{_KEY}.kind: expected one of {', '.join(_KINDS)}, got {kind!r}")
    if pad_s == 0:
        return list(examples)
    return [_padded(e, lead_in_of(e, pad_s=pad_s, kind=kind, seed=seed)) for e in examples]


def lead_in_of(example: GroundingExample, *, pad_s: float, kind: Kind, seed: int) -> LeadIn:
    """Returns the lead-in of an example's clip."""
    clip = json.dumps([seed, example.video, example.window])
    digest = hashlib.sha256(clip.encode()).digest()
    share = int.from_bytes(digest[:6], "big") / 2**48  # exact in float64 and below 1
    drawn: Literal["blank", "noise"] = "blank" if digest[6] % 2 else "noise"
    pixels = int.from_bytes(digest[8:14], "big")
    return LeadIn(share * pad_s, drawn if kind == "random" else kind, pixels)


def no_padding(examples: Sequence[GroundingExample]) -> list[GroundingExample]:
    """Returns the examples without lead-ins."""
    return list(examples)


def _padded(example: GroundingExample, lead_in: LeadIn) -> GroundingExample:
    assert example.lead_in is None, example.qid
    by_s = lead_in.length_s
    return replace(
        example,
        lead_in=lead_in,
        segment=_moved(example.segment, by_s),
        hint=_moved(example.hint, by_s),
        prediction=_moved(example.prediction, by_s),
        duration_s=None if example.duration_s is None else example.duration_s + by_s,
    )


def _moved(segment: Segment | None, by_s: float) -> Segment | None:
    return None if segment is None else Segment(segment.start_s + by_s, segment.end_s + by_s)
