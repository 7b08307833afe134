"""Compares the annotations of a dataset with its videos, before training.

Preparation reads the annotations, probes every video and loads the clips into a cache. Queries of
files that fail in one of these steps are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from tvg.data.annotations import Split
from tvg.data.dataset import fitted_to
from tvg.data.readers.record import ReadReport, ReadResult, merge_reports
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoInfo
from tvg.data.video.sampling import num_lead_in_frames, resolve_window, window_bounds
from tvg.preparation.frames import ClipRequest
from tvg.types import GroundingExample

VIDEO_UNREADABLE = "video unreadable"  # why a report leaves a query out
OTHER_DURATION = "with a stated duration that is not the file's"  # a defect in reports
LATE_IN_FILE = "ending after the file's end"  # a defect; repaired for training
LATE_UNSTATED = "ending after the file's end, no duration stated"  # a benchmark's defect
BEHIND_FILE = "starting after the file's end"  # a defect; dropped for training
# Tolerance between stated and true duration, for the last frame, rounding and re-encoding.
DURATION_SLACK_S = 1.0
DURATION_SLACK_SHARE = 0.05

Infos = Mapping[Path, VideoInfo | str]  # of probed files; a string describes the problem of a file


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An annotation file compared with its videos."""

    splits: tuple[Split, ...]  # splits that use this file under the same rules
    examples: list[GroundingExample]  # the remaining examples
    report: ReadReport
    unreadable: dict[str, str]  # file -> problem of the file or of a part of it
    num_precut: int  # clips whose file is already cut to the window
    num_other_duration: int  # clips whose duration differs from the stated one
    variable_rate: frozenset[Path]  # files of remaining clips whose frame rate varies


def request_of(example: GroundingExample) -> ClipRequest:
    """Returns the clip that an example needs; its video file must be known."""
    assert example.video_path is not None, example.qid
    return ClipRequest(example.video_path, example.window, example.lead_in)


def unusable_clips(
    requests: Iterable[ClipRequest], infos: Infos, loader: ClipLoader
) -> dict[ClipRequest, str]:
    """Returns the problems of clips that are found without decoding."""
    problems = {}
    for request in requests:
        info = infos[request.path]
        if isinstance(info, str):
            problems[request] = info
            continue
        try:
            loader.frame_count_and_size(info, request.window, request.lead_in)
        except ValueError as error:
            problems[request] = str(error)
    return problems


def inspect(
    result: ReadResult,
    splits: tuple[Split, ...],
    failed: Mapping[ClipRequest, str],
    infos: Infos,
    *,
    also: Sequence[GroundingExample] = (),
) -> Inspection:
    """Leaves out the queries of failed clips, and compares annotations with the files.

    For training, segments are cut at the end of their file, and queries whose segment starts after
    the end are left out.

    Args:
        result: result of a reader.
        splits: splits that use this result.
        failed: clip -> its problem.
        infos: infos of the probed files; empty if only annotations are inspected.
        also: further examples whose unreadable files are reported, without counting queries.
    """
    with_file = [e for e in result.examples if e.video_path is not None]
    bad = {e.qid: request_of(e) for e in with_file if request_of(e) in failed}
    unused = [request_of(e) for e in also if e.video_path and request_of(e) in failed]
    examples = [e for e in result.examples if e.qid not in bad]
    report = deepcopy(result.report)
    report.leave_out(VIDEO_UNREADABLE, bad)  # by id: a mixture may repeat an example
    clips = dict.fromkeys(request_of(e) for e in examples if e.video_path is not None)
    others: dict[ClipRequest, str] = {}  # clip -> first query that states another duration
    for e in examples:
        if e.video_path is not None and _is_of_other_duration(e, infos[e.video_path]):
            others.setdefault(request_of(e), e.qid)
    shown_s = {request: _shown_s(request, infos[request.path]) for request in clips}
    for qid in others.values():
        report.add(OTHER_DURATION, qid, "kept")
    examples = _held_against(shown_s, examples, report, is_training="train" in splits)
    return Inspection(
        splits=splits,
        examples=examples,
        report=report,
        unreadable=_by_file({request: failed[request] for request in [*bad.values(), *unused]}),
        num_precut=sum(_is_precut(request, infos[request.path]) for request in clips),
        num_other_duration=len(others),
        variable_rate=frozenset(r.path for r in clips if _is_variable(infos[r.path])),
    )


def _by_file(failed: Mapping[ClipRequest, str]) -> dict[str, str]:
    """Returns one problem per file: the problem of the first window that failed."""
    problems: dict[str, str] = {}
    for request, problem in failed.items():
        problems.setdefault(str(request.path), problem)
    return dict(sorted(problems.items()))


def _is_precut(request: ClipRequest, info: VideoInfo | str) -> bool:
    assert isinstance(info, VideoInfo), info
    if request.window is None:
        return False
    return resolve_window(request.window, info.duration_s) is None


def _is_variable(info: VideoInfo | str) -> bool:
    return isinstance(info, VideoInfo) and info.variable is not None


def _is_of_other_duration(example: GroundingExample, info: VideoInfo | str) -> bool:
    if example.duration_s is None:
        return False
    slack_s = max(DURATION_SLACK_S, DURATION_SLACK_SHARE * example.duration_s)
    return abs(example.duration_s - _shown_s(request_of(example), info)) > slack_s


def _shown_s(request: ClipRequest, info: VideoInfo | str) -> float:
    """Returns the duration of a clip, including its lead-in, in seconds."""
    assert isinstance(info, VideoInfo), info  # unreadable files have been left out
    window = resolve_window(request.window, info.duration_s)
    start_s, end_s = window_bounds(info.num_steps, info.step_fps, window)
    # the same length as the clip from `ClipLoader`
    lead_in = num_lead_in_frames(request.lead_in, info.step_fps)
    return end_s - start_s + lead_in / info.step_fps


def _held_against(
    shown_s: Mapping[ClipRequest, float],
    examples: Sequence[GroundingExample],
    report: ReadReport,
    *,
    is_training: bool,
) -> list[GroundingExample]:
    """Adds missing durations from the files; for training, also cuts segments at the clip's end.

    `GroundingDataset` cuts training segments in the same way. Segments of a benchmark stay as
    published, and its reader has already compared them with the stated durations.
    """
    kept: list[GroundingExample] = []
    met: dict[str, dict[str, None]] = {LATE_IN_FILE: {}, LATE_UNSTATED: {}, BEHIND_FILE: {}}
    for example in examples:
        if example.video_path is None:
            kept.append(example)
            continue
        end_s = shown_s[request_of(example)]
        is_unstated = example.duration_s is None
        if is_unstated:
            example = replace(example, duration_s=end_s)
        fitted = fitted_to(example, end_s)
        if fitted is None:
            met[BEHIND_FILE][example.qid] = None  # a mixture may repeat an example
        elif is_training and fitted.segment != example.segment:
            met[LATE_IN_FILE][example.qid] = None
        elif not is_training and is_unstated and _end_s(example) > end_s + DURATION_SLACK_S:
            met[LATE_UNSTATED][example.qid] = None
        if not is_training:
            kept.append(example)
        elif fitted is not None:
            kept.append(fitted)
    actions = {LATE_IN_FILE: "clamped", BEHIND_FILE: "dropped"} if is_training else {}
    for name, ids in met.items():
        for qid in ids:
            report.add(name, qid, actions.get(name, "kept"))
    if is_training:
        report.leave_out(BEHIND_FILE, met[BEHIND_FILE])
        if met[LATE_IN_FILE]:
            report.repaired[LATE_IN_FILE] = len(met[LATE_IN_FILE])
            report.repaired_ids[LATE_IN_FILE] = set(met[LATE_IN_FILE])
    return kept


def _end_s(example: GroundingExample) -> float:
    return 0.0 if example.segment is None else example.segment.end_s


def total_of(inspections: Sequence[Inspection]) -> Inspection:
    """Returns the sum of the inspections of several files."""
    if len(inspections) == 1:
        return inspections[0]
    reports = {"+".join(i.splits): i.report for i in inspections}
    report = merge_reports(reports)
    report.missing = sorted({video for each in reports.values() for video in each.missing})
    for name, defect in report.defects.items():  # training may drop what a benchmark keeps
        actions = [each.defects[name].action for each in reports.values() if name in each.defects]
        defect.action = ", ".join(dict.fromkeys(actions))
    return Inspection(
        splits=tuple(split for i in inspections for split in i.splits),
        examples=[example for i in inspections for example in i.examples],
        report=report,
        unreadable=dict(sorted(pair for i in inspections for pair in i.unreadable.items())),
        num_precut=sum(i.num_precut for i in inspections),
        num_other_duration=sum(i.num_other_duration for i in inspections),
        variable_rate=frozenset[Path]().union(*(i.variable_rate for i in inspections)),
    )
