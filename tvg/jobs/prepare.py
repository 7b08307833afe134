"""Prepares a data set: checks all its videos and fills its cache before training."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from tvg.build import build_all
from tvg.config import build
from tvg.config.run_folder import RunFolder, claimed
from tvg.core.interruption import advising
from tvg.core.printable import printable_line
from tvg.core.text_files import output_folder_check, write_json
from tvg.core.writing import remove_leftovers
from tvg.data.annotations import SPLITS, AnnotationSet, MixedSets, Split
from tvg.data.readers.record import ReadError, ReadResult
from tvg.model.loading import ModelSource
from tvg.plot.overview import draw_overview_of
from tvg.plot.save import picture_format, save_figure
from tvg.preparation.inspection import Inspection, inspect, total_of
from tvg.preparation.inspection_report import (
    as_json,
    as_table,
    defect_lines,
    missing_files,
    problem_lines,
    shortened,
    size_text,
)
from tvg.preparation.video_check import Model, Videos, look_at_videos
from tvg.report.console import make_console
from tvg.tracking.evaluation_log import log_evaluation
from tvg.tracking.steady import steady
from tvg.training.datamodule_base import PromptDataModule
from tvg.training.evaluation import choose_device

log = logging.getLogger(__name__)


def prepare(cfg: DictConfig, console: Console | None = None) -> dict[str, Any]:
    """Reads all splits, checks all videos and fills the cache; prints a table and writes a report.

    Missing or broken files do not stop the check.

    Raises:
        ValueError: videos or queries cannot be used and `data.on_missing` is "error" (the report
            is still written), or a file has no usable example.
    """
    with claimed(cfg, "prepare") as folder:
        return _prepare(cfg, folder, console or make_console())


def _prepare(cfg: DictConfig, folder: RunFolder, console: Console) -> dict[str, Any]:
    started = time.monotonic()
    _check_outputs(cfg)
    # With "error", the first missing video would stop the check.
    data = build(cfg.data)(task=None, processor=None, family=None, seed=cfg.seed, on_missing="skip")
    if not cfg.prepare.check_only:
        data.prepare_data()
    results = _read(data, cfg.prepare.split)
    others = {splits: _outside_share(data, splits) for splits in results}
    looked_at = [e for r in results.values() for e in r.examples]
    with advising("clips cached so far are kept: run the same command to continue"):
        videos = _look(cfg, data, [*looked_at, *(e for more in others.values() for e in more)])
    inspections = [
        inspect(result, splits, videos.failed, videos.infos, also=others[splits])
        for splits, result in results.items()
    ]
    total = total_of(inspections)
    report = {
        "dataset": data.name,
        **as_json(total),
        **videos.as_json(),
        "seconds": round(time.monotonic() - started, 3),
        "splits": {split: as_json(i) for i in inspections for split in i.splits},
    }
    _show(console, data, inspections, videos)
    if cfg.get("logger"):
        folder.begin()  # keeps the run's files, even if the data is unusable
    _write(cfg, report, total)
    _stop_if_unusable(cfg, data.source, inspections)
    return report


def _check_outputs(cfg: DictConfig) -> None:
    for key in ("report", "overview"):
        path = cfg.prepare[key]
        if path is None:
            continue
        output_folder_check(Path(path).parent)
        if Path(path).is_dir():
            raise ValueError(f"prepare.{key}: expected a file to write, got the folder {path}")
    if cfg.prepare.overview is not None:
        picture_format(cfg.prepare.overview)


def _read(data: PromptDataModule, split: Split | None) -> dict[tuple[Split, ...], ReadResult]:
    """Reads each annotation file once; splits that share a file and its rules are grouped.

    Raises:
        ValueError: there is no such split, or a file does not fit its format.
    """
    source = data.source
    given = source.annotation_split if isinstance(source, AnnotationSet) else None
    wanted = [given] if given is not None and split is None else [split] if split else SPLITS
    groups: dict[tuple[str | None, bool], list[Split]] = {}
    for each in wanted:
        if split is not None or source.files[each] is not None:
            groups.setdefault((source.files[each], each == "train"), []).append(each)
    if not groups:
        raise ValueError(
            f"data.annotation_file: a file is needed, because data={data.name} has none"
        )
    results = {}
    for splits in groups.values():
        try:
            results[tuple(splits)] = data.read(splits[0])
        except ReadError as error:  # no usable example; reported at the end
            results[tuple(splits)] = ReadResult(examples=[], report=error.report)
    return results


def _outside_share(data: PromptDataModule, splits: tuple[Split, ...]) -> Sequence[Any]:
    """Returns all training examples of a mixture, so that the cache also fits other weights."""
    if not isinstance(data.source, MixedSets) or "train" not in splits:
        return ()
    try:
        return data.read_whole("train")
    except ReadError:  # already handled by `_read`
        return ()


def _look(cfg: DictConfig, data: PromptDataModule, examples: Sequence[Any]) -> Videos:
    def load_model() -> Model:
        source: ModelSource = build(cfg.model)
        processor = source.load_processor()
        return source.load_policy(processor).to(choose_device(cfg.device)), processor

    given = cfg.prepare.num_workers
    return look_at_videos(
        examples,
        data.clips,
        num_workers=len(os.sched_getaffinity(0)) if given is None else given,
        timeout_s=cfg.prepare.timeout_s,
        check_only=cfg.prepare.check_only,
        load_model=load_model,
    )


def _show(
    console: Console, data: PromptDataModule, inspections: Sequence[Inspection], videos: Videos
) -> None:
    console.print(as_table(f"{data.name}: as read", inspections))
    _print_lines(console, defect_lines(inspections))
    total = total_of(inspections)
    lines = _problems(data.source, total)
    _print_lines(console, lines)
    done = videos.prepared
    if done is not None:
        console.print(
            f"cache: {done.num_entries:,} clips, {size_text(done.num_bytes)} "
            f"({done.written:,} written, {done.present:,} already present, "
            f"{len(done.rebuilt):,} rebuilt)",
            highlight=False,
        )
        _print_lines(
            console, [f"{path}: was damaged and has been rebuilt" for path in done.rebuilt]
        )


def _problems(source: AnnotationSet | MixedSets, total: Inspection) -> list[str]:
    missing = missing_files(source, total.report.missing)
    return problem_lines(missing, total.unreadable, total.report.unusable_queries)


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in shortened(lines):
        console.print(printable_line(line), soft_wrap=True, highlight=False, markup=False)


def _write(cfg: DictConfig, report: dict[str, Any], total: Inspection) -> None:
    """Writes report and picture if their paths are set, or if there is a logger."""
    run_dir = Path(cfg.run_dir)
    report_path, overview_path = cfg.prepare.report, cfg.prepare.overview
    if cfg.get("logger"):
        report_path, overview_path = (
            report_path or run_dir / "report.json",
            overview_path or run_dir / "overview.png",
        )
    for path in filter(None, (report_path, overview_path)):
        remove_leftovers(Path(path).parent)
    files = []
    if report_path is not None:
        files.append(write_json(report_path, report))
    if overview_path is not None:
        figure = draw_overview_of(total.examples, title=report["dataset"])
        files.append(save_figure(figure, overview_path))
    loggers = steady(build_all(cfg.get("logger")))  # after the report, as a logger may fail
    log_evaluation(loggers, report, files=files, prefix="prepare", folder="prepare")


def _stop_if_unusable(
    cfg: DictConfig, source: AnnotationSet | MixedSets, inspections: Sequence[Inspection]
) -> None:
    total = total_of(inspections)
    lines = _problems(source, total)
    if lines and cfg.data.on_missing == "error":
        if len(lines) == 1:
            raise ValueError(lines[0])
        what = "videos or queries" if total.report.unusable_queries else "videos"
        head = f"{len(lines)} {what} cannot be used (data.on_missing=skip leaves them out):"
        raise ValueError("\n".join([head, *(f"  {line}" for line in shortened(lines))]))
    for inspection in inspections:
        if not inspection.examples:
            path = inspection.report.annotation_file
            raise ValueError(f"{path}: no example is left.\n{inspection.report}")
