"""What is found out about a dataset before anything is trained on it: annotations against videos.

Annotations are read first, then every video is probed, then clips are loaded into a cache; what
fails on the way takes its queries with it, counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tvg.data.annotations import Split
from tvg.data.clip import ClipLoader
from tvg.data.decode import VideoInfo
from tvg.data.preparation import ClipRequest
from tvg.data.readers.record import ReadReport, ReadResult, merge_reports
from tvg.data.sampling import resolve_window, window_bounds
from tvg.types import GroundingExample

VIDEO_UNREADABLE = "video unreadable"  # a report's reason to leave a query out
OTHER_DURATION = "whose stated duration is not the file's"  # among a report's defects
LATE_IN_FILE = "ending behind the file's end, no duration stated"
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


def request_of(example: GroundingExample) -> ClipRequest:
    """The clip that an example needs; its video file has to be known."""
    assert example.video_path is not None, example.qid
    return ClipRequest(example.video_path, example.window, example.lead_in)


def unusable_clips(
    requests: Iterable[ClipRequest], infos: Infos, loader: ClipLoader
) -> dict[ClipRequest, str]:
    """What is wrong with clips, as far as it shows without decoding them."""
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
    result: ReadResult, splits: tuple[Split, ...], failed: Mapping[ClipRequest, str], infos: Infos
) -> Inspection:
    """Leaves out the queries of clips that failed, and compares stated durations with the files'.

    Args:
        result: of a reader.
        splits: that it stands for.
        failed: clip -> what is wrong with it.
        infos: of the files probed; none where only annotations are looked at.
    """
    with_file = [e for e in result.examples if e.video_path is not None]
    bad = {e.qid: request_of(e) for e in with_file if request_of(e) in failed}
    examples = [e for e in result.examples if e.qid not in bad]
    report = result.report
    if bad:  # a mixture may hold an example several times: ids count it once
        report = replace(
            report,
            num_examples=report.num_examples - len(bad),
            dropped={**report.dropped, VIDEO_UNREADABLE: len(bad)},
        )
    clips: dict[ClipRequest, GroundingExample] = {}  # with its first query
    for example in examples:
        if example.video_path is not None:
            clips.setdefault(request_of(example), example)
    others = [e.qid for r, e in clips.items() if _is_of_other_duration(e, infos[r.path])]
    found_s = {r: _shown_s(r, infos[r.path]) for r, e in clips.items() if e.duration_s is None}
    examples = [_with_duration(example, found_s) for example in examples]
    late = [e.qid for e in examples if _ends_late(e, found_s)]
    report = replace(report, defects=dict(report.defects))
    for name, ids in ((OTHER_DURATION, others), (LATE_IN_FILE, late)):
        for qid in ids:
            report.add(name, qid, "kept")
    return Inspection(
        splits=splits,
        examples=examples,
        report=report,
        unreadable=_by_file({request: failed[request] for request in bad.values()}),
        num_precut=sum(_is_precut(request, infos[request.path]) for request in clips),
        num_other_duration=len(others),
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


def _is_of_other_duration(example: GroundingExample, info: VideoInfo | str) -> bool:
    if example.duration_s is None:
        return False
    slack_s = max(DURATION_SLACK_S, DURATION_SLACK_SHARE * example.duration_s)
    return abs(example.duration_s - _shown_s(request_of(example), info)) > slack_s


def _shown_s(request: ClipRequest, info: VideoInfo | str) -> float:
    """The seconds that a clip has in its file, and its lead-in's."""
    assert isinstance(info, VideoInfo), info  # the others have been left out
    window = resolve_window(request.window, info.duration_s)
    start_s, end_s = window_bounds(info.num_frames, info.fps, window)
    return end_s - start_s + (0.0 if request.lead_in is None else request.lead_in.length_s)


def _with_duration(
    example: GroundingExample, found_s: Mapping[ClipRequest, float]
) -> GroundingExample:
    """The example with its file's duration, where none is stated."""
    if example.video_path is None or example.duration_s is not None:
        return example
    return replace(example, duration_s=found_s[request_of(example)])


def _ends_late(example: GroundingExample, found_s: Mapping[ClipRequest, float]) -> bool:
    if example.video_path is None or example.segment is None:
        return False
    end_s = found_s.get(request_of(example))  # with a stated duration, the reader has compared
    return end_s is not None and example.segment.end_s > end_s + DURATION_SLACK_S


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
    )
