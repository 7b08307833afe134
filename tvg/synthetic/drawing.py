"""Renders the frames of a clip from its script, whose seed determines all random numbers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tvg.synthetic.templates import COLOURS
from tvg.synthetic.world import ClipScript, Thing

Float = NDArray[np.float32]

DARK = (45, 45, 45)
_TURN_RATE = np.float32(2 * math.pi * 0.35)  # radians per second of spins and orbits
_BLINK_RATE = np.float32(2 * math.pi * 0.75)
_FAINTEST = 0.45  # minimum opacity of a blinking shape: dim but visible
_NUM_NOISE_FRAMES = 8  # drawn once per clip and shifted, because drawing noise is slow


def draw_clip(script: ClipScript) -> NDArray[np.uint8]:
    """Returns all frames of a clip: uint8 RGB [frames, height, width, 3]."""
    rng = np.random.default_rng(script.drawing_seed)
    size = script.frame_size
    canvas = np.repeat(_background(rng, size)[None], script.num_frames, axis=0)
    for thing in (*script.distractors, *script.events):
        _paint(canvas, thing, fps=script.fps)
    _add_noise(canvas, rng, std=script.noise)
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def _background(rng: np.random.Generator, size: int) -> Float:
    """Returns a background of two blended tints with some grain, [size, size, 3].

    Its brightness is medium, as in an average photograph, so that shapes are easy to see.
    """
    first, second = rng.uniform(90, 150, size=(2, 3))
    angle = rng.uniform(0, 2 * math.pi)
    ys, xs = np.mgrid[0:size, 0:size] / size
    blend = 0.5 + 0.5 * ((xs - 0.5) * math.cos(angle) + (ys - 0.5) * math.sin(angle))
    wall = first + (second - first) * blend[..., None]
    wall += rng.normal(0, 4, size=(size, size, 1))
    return wall.astype(np.float32)


def _add_noise(canvas: Float, rng: np.random.Generator, *, std: float) -> None:
    """Adds sensor noise in place: to each frame, one of a few noise frames, randomly shifted."""
    num_frames, height, width, _ = canvas.shape
    grain = rng.normal(0, std, size=(_NUM_NOISE_FRAMES, height, width, 1)).astype(np.float32)
    which = rng.integers(_NUM_NOISE_FRAMES, size=(num_frames,))
    shifts = rng.integers(0, width, size=(num_frames, 2))
    tiled = np.tile(grain, (1, 2, 2, 1))  # every shifted noise frame is a crop of this 2 x 2 tiling
    for frame in range(num_frames):
        down, right = (int(shift) for shift in shifts[frame])
        top, left = height - down, width - right
        canvas[frame] += tiled[which[frame], top : top + height, left : left + width]


def _paint(canvas: Float, thing: Thing, *, fps: int) -> None:
    """Blends a shape, in place, into the frames [frames, size, size, 3] that show it."""
    size = canvas.shape[1]
    num = thing.end_frame - thing.first_frame
    x, y, radius, turn, opacity = _motion(thing, num=num, fps=fps)
    colour = np.array(COLOURS.get(thing.colour, DARK), np.float32)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    dx = grid[None, None, :] - x[:, None, None]
    dy = grid[None, :, None] - y[:, None, None]
    cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    distance = _distance(
        thing.shape, cos * dx + sin * dy, cos * dy - sin * dx, radius[:, None, None]
    )
    cover = np.clip(0.5 - distance * size, 0, 1) * opacity[:, None, None]
    part = canvas[thing.first_frame : thing.end_frame]
    part += (colour - part) * cover[..., None]


def _motion(thing: Thing, *, num: int, fps: int) -> tuple[Float, Float, Float, Float, Float]:
    """Returns centre x and y, radius, turn (radians) and opacity for each of `num` frames."""
    phase: Float = np.linspace(0, 1, num, dtype=np.float32)
    seconds: Float = np.arange(num, dtype=np.float32) / np.float32(fps)
    x: Float = np.full(num, thing.x, np.float32)
    y: Float = np.full(num, thing.y, np.float32)
    radius: Float = np.full(num, thing.radius, np.float32)
    turn: Float = np.zeros(num, np.float32)
    opacity: Float = np.ones(num, np.float32)
    sweep = 0.2 + 0.6 * phase
    match thing.motion:
        case "right":
            x = sweep
        case "left":
            x = 1 - sweep
        case "rise":
            y = 1 - sweep
        case "fall":
            y = sweep
        case "grow":
            radius = radius * (0.6 + 0.8 * phase)
        case "shrink":
            radius = radius * (1.4 - 0.8 * phase)
        case "spin":
            turn = _TURN_RATE * seconds
        case "blink":
            wave = 0.5 + 0.5 * np.cos(_BLINK_RATE * seconds)
            opacity = _FAINTEST + (1 - _FAINTEST) * wave
        case "orbit":
            angle = _TURN_RATE * seconds
            x = 0.5 + 0.25 * np.cos(angle)
            y = 0.5 + 0.25 * np.sin(angle)
        case "rest":
            pass
        case unknown:
            raise ValueError(f"cannot draw the motion {unknown!r}")
    return x, y, radius, turn, opacity


def _distance(shape: str, x: Float, y: Float, radius: Float) -> Float:
    """Returns the signed distance to a shape's outline (negative inside), accurate near it."""
    ax, ay = np.abs(x), np.abs(y)
    match shape:
        case "circle":
            return np.hypot(x, y) - radius
        case "ring":
            return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius
        case "square":
            return np.maximum(ax, ay) - 0.85 * radius
        case "diamond":
            return (ax + ay - 1.2 * radius) * math.sqrt(0.5)
        case "cross":
            long, short = radius, 0.35 * radius
            upright = np.maximum(ax - short, ay - long)
            return np.minimum(upright, np.maximum(ax - long, ay - short))
        case "triangle":
            slope = 0.866 * ax - 0.5 * y - 0.5 * radius
            return np.maximum(slope, y - 0.6 * radius)
        case unknown:
            raise ValueError(f"cannot draw the shape {unknown!r}")
