"""Draws docs/shared_prefix.png: the tokens and attention scores computed for one group.

python experiments/benchmarks/common/picture.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from tvg.plot.save import save_figure
from tvg.plot.style import INK, MUTED, PREDICTED_COLOUR, TRACK, TRUTH_COLOUR

PROMPT, COMPLETION, GROUP = 16, 4, 4  # tokens, tokens, completions; small, so that they are visible
TARGET = Path(__file__).parents[3] / "docs" / "shared_prefix.png"


def main() -> None:
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    rows, scores = figure.subplots(1, 2, width_ratios=(1.25, 1))
    draw_rows(rows)
    draw_scores(scores)
    print(save_figure(figure, TARGET))


def draw_rows(axes) -> None:
    """Draws the tokens that the layers process, with both methods."""
    for number in range(GROUP):
        box(axes, 0, -number, PROMPT, TRUTH_COLOUR, "video and query" if number == 0 else "")
        box(axes, PROMPT, -number, COMPLETION, PREDICTED_COLOUR, f"$c_{number + 1}$")
    below = -GROUP - 1.4
    box(axes, 0, below, PROMPT, TRUTH_COLOUR, "video and query")
    for number in range(GROUP):
        start = PROMPT + number * COMPLETION
        box(axes, start, below, COMPLETION, PREDICTED_COLOUR, f"$c_{number + 1}$")
    tokens = GROUP * (PROMPT + COMPLETION), PROMPT + GROUP * COMPLETION
    for place, text, count in ((0, "repeated", tokens[0]), (below, "shared prefix", tokens[1])):
        axes.text(0, place + 0.95, f"{text}: {count} tokens", color=INK, fontsize=10)
    axes.set_xlim(-0.5, PROMPT + GROUP * COMPLETION + 0.5)
    axes.set_ylim(below - 0.5, 1.6)
    axes.set_axis_off()


def box(axes, start: float, place: float, width: float, colour: str, text: str) -> None:
    axes.barh(place, width - 0.15, left=start, height=0.72, color=colour, alpha=0.85)
    axes.text(start + width / 2, place, text, color="white", ha="center", va="center", fontsize=9)


def draw_scores(axes) -> None:
    """Draws which attention scores are computed in the shared row, and by which call."""
    num = PROMPT + GROUP * COMPLETION
    kinds = np.zeros((num, num))
    causal = np.tril(np.ones((num, num), dtype=bool))
    kinds[:PROMPT, :PROMPT][causal[:PROMPT, :PROMPT]] = 1
    kinds[PROMPT:, :PROMPT] = 2
    for number in range(GROUP):
        own = slice(PROMPT + number * COMPLETION, PROMPT + (number + 1) * COMPLETION)
        kinds[own, own][causal[own, own]] = 3
    colours = ListedColormap([TRACK, TRUTH_COLOUR, "#7FB2D5", PREDICTED_COLOUR])
    axes.imshow(kinds, cmap=colours, vmin=0, vmax=3, interpolation="nearest")
    middle = PROMPT + GROUP * COMPLETION / 2
    labels = (
        (PROMPT * 0.32, PROMPT * 0.66, "causal", "white"),
        (PROMPT / 2, middle, "no mask:\nall completions\nover one prompt", INK),
        (middle + 1, PROMPT - 2.5, "causal, each over\nits own tokens", INK),
    )
    for x, y, text, colour in labels:
        axes.text(x, y, text, color=colour, ha="center", va="center", fontsize=9)
    axes.set_xlabel("keys", color=MUTED)
    axes.set_ylabel("queries", color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("three plain attention calls, joined by log-sum-exp", fontsize=10, color=INK)


if __name__ == "__main__":
    main()
