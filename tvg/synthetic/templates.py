"""Defines the names of events and the query templates of the synthetic world (generated videos)."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 220, 40),
    "purple": (190, 50, 220),
    "cyan": (50, 220, 230),
    "orange": (250, 140, 20),
    "white": (245, 245, 245),
}

SHAPES: tuple[str, ...] = ("square", "circle", "triangle", "cross", "diamond", "ring")

# Spinning is invisible on these shapes, so they never spin in a query.
ROUND_SHAPES = frozenset({"circle", "ring"})


@dataclass(frozen=True, kw_only=True)
class Verb:
    """The verb of a motion in two forms: `slides to the right` and `sliding to the right`."""

    present: str
    gerund: str


MOTIONS: dict[str, Verb] = {
    "right": Verb(present="slides to the right", gerund="sliding to the right"),
    "rise": Verb(present="rises", gerund="rising"),
    "grow": Verb(present="grows", gerund="growing"),
    "spin": Verb(present="spins", gerund="spinning"),
    "left": Verb(present="slides to the left", gerund="sliding to the left"),
    "fall": Verb(present="falls", gerund="falling"),
    "shrink": Verb(present="shrinks", gerund="shrinking"),
    "blink": Verb(present="blinks", gerund="blinking"),
    "orbit": Verb(present="moves in a loop", gerund="moving in a loop"),
}

SENTENCES: tuple[str, ...] = (
    "The {colour} {shape} {present}.",
    "A {colour} {shape} {present}.",
    "A {colour} {shape} is {gerund}.",
    "There is a {colour} {shape} {gerund}.",
)


def query_text(*, colour: str, shape: str, motion: str, sentence: str) -> str:
    """Returns one of SENTENCES with the names of an event; KeyError for an unknown motion."""
    verb = MOTIONS[motion]
    return sentence.format(colour=colour, shape=shape, present=verb.present, gerund=verb.gerund)


def all_queries() -> list[str]:
    """Returns all possible queries in a fixed order (for vocabularies and tests)."""
    return [
        query_text(colour=colour, shape=shape, motion=motion, sentence=sentence)
        for sentence in SENTENCES
        for colour in COLOURS
        for shape in SHAPES
        for motion in MOTIONS
        if is_visible(shape=shape, motion=motion)
    ]


def is_visible(*, shape: str, motion: str) -> bool:
    """Returns whether a motion is visible on a shape (a spinning circle appears at rest)."""
    return not (motion == "spin" and shape in ROUND_SHAPES)
