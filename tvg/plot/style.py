"""Colours, fonts, text and visible parts of segments, as used by all pictures."""

from __future__ import annotations

import math
import unicodedata
from functools import cache
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from tvg.types import Segment

# Two colours of Okabe and Ito's palette, distinguishable with every common colour blindness.
PREDICTED_COLOUR = "#E07B00"
TRUTH_COLOUR = "#0072B2"
INK, MUTED, TRACK = "#1F2933", "#6B7785", "#E9EDF1"
FIGURE_DPI = 150

# If a font lacks a glyph, the next font is tried.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans Devanagari",
    "Noto Sans",
    "Noto Emoji",
)


@cache
def font_families() -> list[str]:
    """Returns the fonts of `_FONTS` that are installed; a missing font would log a warning."""
    installed = set(font_manager.fontManager.get_font_names())
    return [name for name in _FONTS if name in installed] or ["sans-serif"]


def add_text(figure: Figure, x: float, y: float, text: str, **style: Any) -> Text:
    """Writes text at figure coordinates, without mathtext, so that `$` is a dollar sign."""
    return figure.text(x, y, text, parse_math=False, fontfamily=font_families(), **style)


def clean_text(text: str) -> str:
    """Returns one line; line breaks, control characters and lone surrogates become spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _width(text: str) -> int:
    """Returns the number of columns of a text; a wide (East Asian) character has two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrap_text(text: str, *, num_columns: int, max_lines: int) -> list[str]:
    """Cleans text and breaks it into lines; splits a word only if it is wider than a line.

    Returns:
        At least one line; the last ends in an ellipsis if the text did not fit.
    """
    lines, line = [], ""
    enough = num_columns * (max_lines + 1)  # characters, each of one or two columns
    for word in clean_text(text)[:enough].split(" "):
        if line and _width(line) + 1 + _width(word) <= num_columns:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        line = ""
        for character in word:
            if _width(line) + _width(character) > num_columns:
                lines.append(line)
                line = ""
            line += character
    lines.append(line)
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while _width(last) > num_columns - 1:
        last = last[:-1]
    return [*lines[: max_lines - 1], last.rstrip() + "…"]


def visible_part(segment: Segment | None, duration_s: float) -> tuple[float, float] | None:
    """Returns the part of a segment inside [0, duration_s]; None if there is nothing to draw.

    A policy may answer with reversed, infinite or too late times, which have no visible part.
    """
    if segment is None or not all(map(math.isfinite, segment)):
        return None
    start_s, end_s = max(segment.start_s, 0.0), min(segment.end_s, duration_s)
    return (start_s, end_s) if start_s <= end_s else None


def describe_segment(segment: Segment | None, duration_s: float) -> str:
    """Describes a segment as `1.0 – 7.5 s`, with a note on anything unusual."""
    if segment is None:
        return "no segment found in the answer"
    text = f"{segment.start_s:.1f} – {segment.end_s:.1f} s"
    if segment.start_s > segment.end_s:
        return f"{text}  (reversed)"
    if segment.start_s > duration_s or segment.end_s < 0:
        return f"{text}  (outside the clip)"
    # Annotations sometimes end just after their video; only a visible difference is reported.
    if segment.end_s > 1.02 * duration_s:
        return f"{text}  (clip ends at {duration_s:.1f} s)"
    return text
