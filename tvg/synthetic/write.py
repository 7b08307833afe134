"""Writes the synthetic world to disk: mp4 files and annotations in Charades-STA's format."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from tvg.core.worker_process import WORKERS
from tvg.core.writing import disk_errors, remove_leftovers, whole_folder
from tvg.synthetic.drawing import draw_clip
from tvg.synthetic.encoding import encode_h264
from tvg.synthetic.world import ClipScript, WorldSettings, script_clip

DRAWING_VERSION = 1  # increase if the same settings generate other videos
SILENT_S = 3.0  # seconds before a progress bar appears
_MANIFEST = "world.json"


def write_world(
    root: Path | str,
    *,
    settings: WorldSettings,
    num_clips: dict[str, int],
    seed: int,
    num_workers: int,
) -> Path:
    """Generates videos with annotations, unless the folder already contains them.

    Writes `{train,val,test}.json` (in Charades-STA's format, with coarse segments as `hints`) and
    `videos/<id>.mp4`. All files are written into a neighbouring folder that is renamed at the end,
    so an interrupted run leaves no incomplete data.

    Args:
        root: folder to write.
        settings: appearance of clips; see `world_settings` for named difficulties.
        num_clips: clips per split, e.g. {"train": 2000, "val": 50, "test": 250}.
        seed: the same seed and settings give the same videos.
        num_workers: processes that generate videos; 0 uses this process.

    Returns:
        `root` as a path.

    Raises:
        ValueError: `root` exists and contains something else.
    """
    root = Path(root)
    manifest = {
        "drawing_version": DRAWING_VERSION,
        "settings": asdict(settings),
        "num_clips": num_clips,
        "seed": seed,
    }
    if _is_drawn(root, manifest):
        return root
    scripts = {
        split: [
            script_clip(split=split, index=index, seed=seed, settings=settings)
            for index in range(num)
        ]
        for split, num in num_clips.items()
    }
    with _alone(root):  # the ranks of a node start together; one of them generates
        if _is_drawn(root, manifest):
            return root
        _write(root, manifest, scripts, num_workers)
    return root


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Lets one process of this machine at a time generate a folder; others wait for it."""
    lock = FileLock(root.with_name(f".{root.name}.lock"))
    with disk_errors(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while locked, so that others notice
        lock.release()


def _write(
    root: Path, manifest: dict[str, Any], scripts: dict[str, list[ClipScript]], num_workers: int
) -> None:
    remove_leftovers(root.parent)
    with whole_folder(root, replaces=False) as unfinished:
        (unfinished / "videos").mkdir()
        every = [script for split in scripts.values() for script in split]
        generated = _draw_all(every, unfinished / "videos", num_workers)
        show_s = 0.5 if sys.stderr.isatty() else 30.0  # fewer lines in log files
        for _ in tqdm(
            generated,
            desc="generating videos",
            total=len(every),
            unit="video",
            mininterval=show_s,
            delay=SILENT_S,
        ):
            pass
        for split, members in scripts.items():
            _write_json(unfinished / f"{split}.json", {s.video_id: annotation(s) for s in members})
        _write_json(unfinished / _MANIFEST, manifest)


def annotation(script: ClipScript) -> dict[str, object]:
    """Returns the annotations of a clip: Charades-STA's keys and the coarse `hints`."""
    return {
        "duration": script.duration_s,
        "timestamps": [list(segment) for segment in script.segments],
        "sentences": list(script.queries),
        "hints": [list(segment) for segment in script.hints],
    }


def _is_drawn(root: Path, manifest: dict[str, object]) -> bool:
    """Returns whether `root` contains this world; raises ValueError for other content."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    path = root / _MANIFEST
    found = json.loads(path.read_text()) if path.is_file() else None
    if found == manifest:
        return True
    told = (
        "a synthetic world with other settings"
        if found
        else "something that is not a synthetic world"
    )
    raise ValueError(f"{root} contains {told}: delete it or choose another folder")


def _draw_all(scripts: list[ClipScript], folder: Path, num_workers: int) -> Iterator[None]:
    draw = partial(_draw_file, folder=folder)
    if num_workers == 0:
        yield from map(draw, scripts)
        return
    # No fork: it breaks the parent's threads (torch, a progress bar).
    with ProcessPoolExecutor(num_workers, mp_context=WORKERS) as pool:
        yield from pool.map(draw, scripts, chunksize=16)


def _draw_file(script: ClipScript, *, folder: Path) -> None:
    encode_h264(folder / f"{script.video_id}.mp4", draw_clip(script), fps=script.fps)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
