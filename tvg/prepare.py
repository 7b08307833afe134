"""tvg-prepare: reads a dataset's annotations and looks at every video, before any training."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from tvg.config import CONF_DIR, check, entry_point
from tvg.data.decode import VideoError
from tvg.data.readers import ReadResult
from tvg.task.report import output_folder_check, write_json
from tvg.train import build_data
from tvg.training.datamodule import GroundingDataModule, Split

log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def prepare(cfg: DictConfig, console: Console | None = None) -> dict[str, Any]:
    """Reads every split, probes every video once, prints a table, writes the report.

    Raises:
        VideoError: a video cannot be read, and `data.on_missing` is "error".
    """
    started = time.monotonic()
    if cfg.prepare.report is not None:
        output_folder_check(Path(cfg.prepare.report).parent)
    data = build_data(cfg)
    data.prepare_data()
    results = {split: data.read(split) for split in SPLITS if data.files[split] is not None}
    videos = {e.video_path for result in results.values() for e in result.examples if e.video_path}
    unreadable = _probe(data, sorted(videos))
    report = {
        "dataset": data.dataset_name,
        "splits": {split: _split_report(result) for split, result in results.items()},
        "videos": len(videos),
        "unreadable": unreadable,
        "bytes": sum(path.stat().st_size for path in videos),
        "seconds": round(time.monotonic() - started, 3),
    }
    _print(console or Console(), data.dataset_name, results, unreadable)
    if cfg.prepare.report is not None:
        write_json(cfg.prepare.report, report)
    return report


def _probe(data: GroundingDataModule, videos: Iterable[Path]) -> dict[str, str]:
    """Opens every file; returns what is wrong, by path, or stops at the first."""
    unreadable: dict[str, str] = {}
    for path in tqdm(list(videos), unit="video", desc="probe"):
        try:
            data.loader.decoder.probe(path)
        except VideoError as error:
            if data.on_missing == "error":
                raise
            unreadable[str(path)] = str(error)
    return unreadable


def _split_report(result: ReadResult) -> dict[str, Any]:
    report = result.report
    defects = {
        name: {"count": d.count, "action": d.action, "examples": d.example_ids}
        for name, d in report.defects.items()
    }
    return {
        "file": str(report.annotation_file),
        "videos": report.num_videos,
        "queries": report.num_queries,
        "kept": report.num_examples,
        "defects": defects,
    }


def _print(
    console: Console, name: str, results: dict[Split, ReadResult], unreadable: dict[str, str]
) -> None:
    table = Table(title=f"{name}: as read", title_justify="left")
    for column in ("split", "videos", "queries", "kept", "defects"):
        table.add_column(column, justify="left" if column in ("split", "defects") else "right")
    for split, result in results.items():
        report = result.report
        defects = "\n".join(f"{d.count} {what}, {d.action}" for what, d in report.defects.items())
        counts = (report.num_videos, report.num_queries, report.num_examples)
        table.add_row(split, *(f"{count:,}" for count in counts), escape(defects) or "none")
    console.print(table)
    for path, problem in unreadable.items():
        console.print(f"unreadable: {escape(problem)}", soft_wrap=True)
        log.debug("unreadable: %s", path)


@entry_point
@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="prepare")
def main(cfg: DictConfig) -> None:
    """The console script."""
    check(cfg)
    prepare(cfg)


if __name__ == "__main__":
    main()
