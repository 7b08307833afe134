"""Writing a figure to a file, whole or not at all."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from tvg.plot.style import FIGURE_DPI


def picture_format(path: str | Path) -> str:
    """The format that a picture's suffix asks for.

    Raises:
        ValueError: the suffix is none that matplotlib can write.
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
    """Writes the figure in the format of the path's suffix, and makes the folder it needs.

    The file appears under its name only when it is complete.

    Raises:
        ValueError: the suffix is none that matplotlib can write.
    """
    path = Path(path)
    file_format = picture_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with warnings.catch_warnings():
            # A query may hold characters that no installed font has; they show as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            figure.savefig(temporary, format=file_format, dpi=FIGURE_DPI, facecolor="white")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
