"""Generates the scripts of the synthetic world: the events of each clip, their times and queries.

The synthetic world is a data set of generated videos in which coloured shapes move. A
`ClipScript` describes a clip. It is determined by the seed, the split, the clip's index and
`WorldSettings`. `tvg.synthetic.drawing` renders it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from tvg.synthetic.templates import COLOURS, MOTIONS, SENTENCES, SHAPES, is_visible, query_text
from tvg.types import Segment

SPLITS: tuple[str, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Appearance and difficulty of clips."""

    frame_size: int  # pixels, width and height; even, as H.264 requires
    fps: int  # frames per second
    min_duration_s: float
    max_duration_s: float
    min_event_s: float  # length of an event, uniform from min to max
    max_event_s: float
    min_events: int  # events per clip, uniform from min to max; each event has a query
    max_events: int
    num_colours: int  # the first num_colours COLOURS are used; likewise for shapes and motions
    num_shapes: int
    num_motions: int
    easy_share: float  # share of training clips with one event and no distractors
    lookalike: float  # probability that an event shares colour or shape with another
    num_distractors: int  # maximum number of dark shapes per clip, which have no queries
    noise: float  # standard deviation of the pixel noise, on the scale of 0 to 255
    # Starts and ends of hints (coarse labels) are rounded outward to this grid.
    coarse_grid_s: float
    coarse_share: float  # probability that a start or end is rounded; otherwise it is exact

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("synthetic world: " + "; ".join(problems))

    def _problems(self) -> Iterable[str]:
        if self.frame_size < 16 or self.frame_size % 2:
            yield f"frame_size must be even and at least 16, got {self.frame_size}"
        if self.fps < 1:
            yield f"fps must be at least 1, got {self.fps}"
        for name in ("duration_s", "event_s"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if not 0 < least <= most:
                yield f"{name} must be 0 < min <= max, got {least}, {most}"
        if self.min_event_s > self.min_duration_s:
            yield f"min_event_s {self.min_event_s} is longer than the shortest clip"
        limits = {"num_colours": COLOURS, "num_shapes": SHAPES, "num_motions": MOTIONS}
        for name, known in limits.items():
            if not 1 <= getattr(self, name) <= len(known):
                yield f"{name} must be 1 to {len(known)}, got {getattr(self, name)}"
        if not 1 <= self.min_events <= self.max_events:
            yield f"events must be 1 <= min <= max, got {self.min_events}, {self.max_events}"
        elif self.max_events > self.num_colours * self.num_shapes:
            yield f"{self.max_events} events need as many different colour-shape pairs"
        if self.coarse_grid_s <= 0:
            yield f"coarse_grid_s must be above 0, got {self.coarse_grid_s}"
        for name in ("easy_share", "lookalike", "coarse_share"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name} must be 0 to 1, got {getattr(self, name)}"


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A shape that is visible from `first_frame` up to, but not including, `end_frame`."""

    colour: str  # a key of COLOURS, or "dark" for a distractor
    shape: str
    motion: str  # a key of MOTIONS, or "rest"
    first_frame: int
    end_frame: int
    x: float  # centre as a share of the frame, 0 to 1
    y: float
    radius: float  # share of the frame's width


@dataclass(frozen=True, kw_only=True)
class ClipScript:
    """Everything that determines a clip's frames and annotations."""

    video_id: str
    num_frames: int
    fps: int
    frame_size: int
    noise: float
    events: tuple[Thing, ...]  # in annotation order, not by time
    distractors: tuple[Thing, ...]
    queries: tuple[str, ...]  # one per event
    hints: tuple[Segment, ...]  # coarse segment of each event
    drawing_seed: int

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Exact segments, from the start of an event's first frame to the end of its last."""
        return tuple(Segment(e.first_frame / self.fps, e.end_frame / self.fps) for e in self.events)


def script_clip(*, split: str, index: int, seed: int, settings: WorldSettings) -> ClipScript:
    """Returns the script of one clip; the same arguments always give the same script.

    Each (seed, split, index) has its own random stream, so that splits are independent. A share of
    the training clips is easy: without easy clips, a model that is trained from scratch does not
    learn to use the video.

    Raises:
        ValueError: `split` is not one of SPLITS.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split: expected one of {', '.join(SPLITS)}, got {split!r}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), index]))
    shortest = math.ceil(settings.min_duration_s * settings.fps)
    longest = math.floor(settings.max_duration_s * settings.fps)
    num_frames = int(rng.integers(shortest, longest + 1))
    if split == "train" and rng.random() < settings.easy_share:
        settings = replace(settings, min_events=1, max_events=1, num_distractors=0)
    num_events = int(rng.integers(settings.min_events, settings.max_events + 1))
    events = tuple(
        _place(rng, colour=colour, shape=shape, motion=motion, num_frames=num_frames, s=settings)
        for colour, shape, motion in _identities(rng, num_events, settings)
    )
    num_distractors = int(rng.integers(0, settings.num_distractors + 1))
    distractors = tuple(
        _place(
            rng,
            colour="dark",
            shape=SHAPES[int(rng.integers(settings.num_shapes))],
            motion=str(rng.choice(["rest", *list(MOTIONS)[: settings.num_motions]])),
            num_frames=num_frames,
            s=settings,
        )
        for _ in range(num_distractors)
    )
    queries = tuple(
        query_text(
            colour=event.colour,
            shape=event.shape,
            motion=event.motion,
            sentence=SENTENCES[int(rng.integers(len(SENTENCES)))],
        )
        for event in events
    )
    duration_s = num_frames / settings.fps
    hints = tuple(
        coarse_segment(
            Segment(event.first_frame / settings.fps, event.end_frame / settings.fps),
            duration_s=duration_s,
            grid_s=settings.coarse_grid_s,
            round_start=bool(rng.random() < settings.coarse_share),
            round_end=bool(rng.random() < settings.coarse_share),
        )
        for event in events
    )
    return ClipScript(
        video_id=f"{split}_{index:05d}",
        num_frames=num_frames,
        fps=settings.fps,
        frame_size=settings.frame_size,
        noise=settings.noise,
        events=events,
        distractors=distractors,
        queries=queries,
        hints=hints,
        drawing_seed=int(rng.integers(2**31)),
    )


def coarse_segment(
    segment: Segment, *, duration_s: float, grid_s: float, round_start: bool, round_end: bool
) -> Segment:
    """Rounds the start, the end or both outward to the grid and limits them to the clip."""
    start_s = math.floor(segment.start_s / grid_s) * grid_s if round_start else segment.start_s
    end_s = math.ceil(segment.end_s / grid_s) * grid_s if round_end else segment.end_s
    return Segment(max(0.0, start_s), min(duration_s, end_s))


def _identities(
    rng: np.random.Generator, num: int, settings: WorldSettings
) -> list[tuple[str, str, str]]:
    """Draws colour, shape and motion of each event; no two share both colour and shape."""
    colours = list(COLOURS)[: settings.num_colours]
    shapes = SHAPES[: settings.num_shapes]
    motions = list(MOTIONS)[: settings.num_motions]
    pairs: list[tuple[str, str]] = []
    for _ in range(num):
        free = [(c, s) for c in colours for s in shapes if (c, s) not in pairs]
        used_colours = {c for c, _ in pairs}
        used_shapes = {s for _, s in pairs}
        alike = [(c, s) for c, s in free if (c in used_colours) != (s in used_shapes)]
        apart = [(c, s) for c, s in free if c not in used_colours and s not in used_shapes]
        wish = alike if rng.random() < settings.lookalike else apart
        choice = wish or [(c, s) for c, s in free if c not in used_colours] or free
        pairs.append(choice[int(rng.integers(len(choice)))])
    chosen = []
    for colour, shape in pairs:
        seen = [m for m in motions if is_visible(shape=shape, motion=m)] or motions
        chosen.append((colour, shape, seen[int(rng.integers(len(seen)))]))
    return chosen


def _place(
    rng: np.random.Generator,
    *,
    colour: str,
    shape: str,
    motion: str,
    num_frames: int,
    s: WorldSettings,
) -> Thing:
    """Draws the time, place and size of a shape."""
    shortest = math.ceil(s.min_event_s * s.fps)
    longest = min(num_frames, math.floor(s.max_event_s * s.fps))
    length = int(rng.integers(shortest, longest + 1))
    first = int(rng.integers(0, num_frames - length + 1))
    return Thing(
        colour=colour,
        shape=shape,
        motion=motion,
        first_frame=first,
        end_frame=first + length,
        x=float(rng.uniform(0.25, 0.75)),
        y=float(rng.uniform(0.25, 0.75)),
        radius=float(rng.uniform(0.17, 0.23)),
    )


# `medium` is the world of the demo. Lengths and positions vary so widely that no constant answer
# scores well. Half of the hints' starts and ends are exact. The others are rounded to a grid that
# is coarser than the model's resolution. After supervised training, the model's most likely answer
# is therefore coarse, although the model can locate events better. Reinforcement learning makes its
# answers more exact. `easy` has one event per clip, so that the query is not needed. `hard` has
# more events, which look more alike.
_MEDIUM = WorldSettings(
    frame_size=64,
    fps=4,
    min_duration_s=10.0,
    max_duration_s=20.0,
    min_event_s=1.5,
    max_event_s=6.0,
    min_events=1,
    max_events=2,
    num_colours=6,
    num_shapes=4,
    num_motions=6,
    easy_share=0.5,
    lookalike=0.2,
    num_distractors=2,
    noise=3.0,
    coarse_grid_s=4.0,
    coarse_share=0.5,
)
DIFFICULTIES: dict[str, WorldSettings] = {
    "easy": replace(_MEDIUM, max_events=1, num_distractors=0, noise=3.0),
    "medium": _MEDIUM,
    "hard": replace(
        _MEDIUM,
        min_events=2,
        max_events=5,
        num_colours=8,
        num_shapes=6,
        num_motions=9,
        lookalike=0.6,
        num_distractors=4,
        noise=12.0,
    ),
}


def world_settings(*, difficulty: str) -> WorldSettings:
    """Returns the settings of a named difficulty.

    Raises:
        ValueError: the name is not one of DIFFICULTIES.
    """
    if difficulty not in DIFFICULTIES:
        known = ", ".join(DIFFICULTIES)
        raise ValueError(f"unknown difficulty: expected one of {known}, got {difficulty!r}")
    return DIFFICULTIES[difficulty]
