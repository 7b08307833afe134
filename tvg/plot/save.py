"""Writes a figure to a file atomically."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from tvg.core.writing import whole_file
from tvg.plot.style import FIGURE_DPI


def picture_format(path: str | Path) -> str:
    """Returns the picture format given by a path's suffix.

    Raises:
        ValueError: matplotlib cannot write this format.
    """
    suffix = Path(path).suffix
    known = FigureCanvasBase.get_supported_filetypes()
    if suffix.lstrip(".").lower() not in known:
        raise ValueError(
            f"cannot write a picture to {path}: the suffix must be one of "
            f"{', '.join(sorted(known))}; got {suffix!r}"
        )
    return suffix.lstrip(".").lower()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes the figure in the format of the path's suffix; creates the folder.

    The file gets its name only when it is complete.

    Raises:
        ValueError: matplotlib cannot write this format.
        OSError: the disk is full or not writable. The message names the file and, if the disk is
            full, the disk.
    """
    path = Path(path)
    file_format = picture_format(path)
    with whole_file(path, sync=False) as temporary, warnings.catch_warnings():
        # A query may contain characters that no installed font has; these are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(temporary, format=file_format, dpi=FIGURE_DPI, facecolor="white")
    return path
