"""The inspection of a dataset before training: annotations against videos.

Annotations are read first, then every video is probed, then clips are loaded into a cache; what
fails on the way takes its queries with it, counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from tvg.data.annotations import Split
from tvg.data.clip import ClipLoader
from tvg.data.dataset import fitted_to
from tvg.data.decode import VideoInfo
from tvg.data.preparation import ClipRequest
from tvg.data.readers.record import ReadReport, ReadResult, merge_reports
from tvg.data.sampling import num_lead_in_frames, resolve_window, window_bounds
from tvg.types import GroundingExample

VIDEO_UNREADABLE = "video unreadable"  # a report's reason to leave a query out
OTHER_DURATION = "whose stated duration is not the file's"  # among a report's defects
LATE_IN_FILE = "ending after the file's end"  # a defect, for training also a repair
LATE_UNSTATED = "ending after the file's end, no duration stated"  # of a benchmark
BEHIND_FILE = "starting after the file's end"  # a defect, for training also a reason to leave out
# A stated duration and the file's own differ by the last frame, by rounding, by a re-encoding.
DURATION_SLACK_S = 1.0
DURATION_SLACK_SHARE = 0.05

Infos = Mapping[Path, VideoInfo | str]  # of probed files; a text says what is wrong with one


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An annotation file held against its videos."""

    splits: tuple[Split, ...]  # that are served from this file under the same rules
    examples: list[GroundingExample]  # what is left
    report: ReadReport
    unreadable: dict[str, str]  # file -> what is wrong with it, or with a part of it
    num_precut: int  # clips whose file is cut to the window already
    num_other_duration: int  # clips whose file is not as long as stated
    variable_rate: frozenset[Path]  # files whose frame rate varies, of the clips that are left


def request_of(example: GroundingExample) -> ClipRequest:
    """The clip that an example needs; its video file has to be known."""
    assert example.video_path is not None, example.qid
    return ClipRequest(example.video_path, example.window, example.lead_in)


def unusable_clips(
    requests: Iterable[ClipRequest], infos: Infos, loader: ClipLoader
) -> dict[ClipRequest, str]:
    """Problems of clips, as far as they show without decoding."""
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
    """Leaves out the queries of clips that failed, and holds what is stated against the files.

    For training, segments end where their file does; those that start after it are left out.

    Args:
        result: of a reader.
        splits: that it stands for.
        failed: clip -> what is wrong with it.
        infos: of the files probed; none where only annotations are looked at.
        also: looked at as well, though no query is counted for them: their files are named.
    """
    with_file = [e for e in result.examples if e.video_path is not None]
    bad = {e.qid: request_of(e) for e in with_file if request_of(e) in failed}
    unused = [request_of(e) for e in also if e.video_path and request_of(e) in failed]
    examples = [e for e in result.examples if e.qid not in bad]
    report = deepcopy(result.report)
    report.leave_out(VIDEO_UNREADABLE, bad)  # by id: a mixture may hold an example several times
    clips = dict.fromkeys(request_of(e) for e in examples if e.video_path is not None)
    others: dict[ClipRequest, str] = {}  # with the first query that states another duration
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
    """One text a file; where only some windows of it fail, the first of those."""
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
    """The seconds that a clip has in its file, and its lead-in's."""
    assert isinstance(info, VideoInfo), info  # the others have been left out
    window = resolve_window(request.window, info.duration_s)
    start_s, end_s = window_bounds(info.num_steps, info.step_fps, window)
    # as long as the clip that `ClipLoader` gives
    lead_in = num_lead_in_frames(request.lead_in, info.step_fps)
    return end_s - start_s + lead_in / info.step_fps


def _held_against(
    shown_s: Mapping[ClipRequest, float],
    examples: Sequence[GroundingExample],
    report: ReadReport,
    *,
    is_training: bool,
) -> list[GroundingExample]:
    """Examples with their files' durations, where none is stated, and with segments that fit them.

    Training fits segments to the clips that it finds (`GroundingDataset`); a benchmark stays as
    published, and a stated duration has been compared by its reader.
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
            met[BEHIND_FILE][example.qid] = None  # a mixture may hold an example several times
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
    """The sums over several files."""
    if len(inspections) == 1:
        return inspections[0]
    reports = {"+".join(i.splits): i.report for i in inspections}
    report = merge_reports(reports)
    report.missing = sorted({video for each in reports.values() for video in each.missing})
    for name, defect in report.defects.items():  # dropped from training, kept in a benchmark
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
