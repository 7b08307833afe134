"""Predicts the moment that a sentence describes in a video file, and draws it."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.markup import escape

from tvg.config import build
from tvg.config.run_folder import claimed
from tvg.core.logprobs import set_head_products
from tvg.core.parsing import parse_answer
from tvg.core.printable import printable, printable_line
from tvg.core.text_files import output_folder_check, write_json
from tvg.core.writing import remove_leftovers
from tvg.data.collate import PromptCollator
from tvg.data.dataset import Sample
from tvg.data.query_text import query_problem
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoError
from tvg.data.video.sampling import literal_window
from tvg.model.loading import ModelSource
from tvg.plot.filmstrip import draw_filmstrip
from tvg.plot.save import picture_format, save_figure
from tvg.report.console import make_console
from tvg.rollout.engine import RolloutEngine, awake
from tvg.task.predictions import Prediction
from tvg.task.protocol import Task
from tvg.training.evaluation import choose_device, predict_batch
from tvg.training.quiet_logs import quiet_libraries
from tvg.types import GroundingExample, Segment, VideoClip


def predict(cfg: DictConfig, console: Console | None = None) -> Prediction:
    """Prints the segment and the reasoning; writes a filmstrip and a JSON file."""
    quiet_libraries()
    with claimed(cfg, "predict"):
        return _predicted(cfg, console or make_console())


def _predicted(cfg: DictConfig, console: Console) -> Prediction:
    picture = Path(cfg.picture)
    picture_format(picture)
    output_folder_check(picture.parent)
    remove_leftovers(picture.parent)
    device = choose_device(cfg.device)
    if not str(cfg.query).strip():
        raise ValueError("query: expected a sentence, got an empty text")
    if (problem := query_problem(str(cfg.query), max_chars=None)) is not None:
        raise ValueError(f"query: {problem}")
    window, truth = _segment(cfg, "window"), _segment(cfg, "truth")
    loader: ClipLoader = build(cfg.clip)(decoder=build(cfg.decoder))
    window = _window_of(loader, Path(cfg.video), window)
    clip = loader.load(Path(cfg.video), window)  # before the model, so that bad files fail early
    example = GroundingExample(
        qid="query",
        video=str(cfg.video),
        video_path=Path(cfg.video),
        query=str(cfg.query),
        segment=truth,
        duration_s=clip.duration_s,
        window=window,
    )
    prediction = _predict(cfg, Sample(example, clip), device)
    _print(console, prediction, clip, window)
    figure = draw_filmstrip(
        clip.frames,
        clip.frame_times_s,
        duration_s=clip.duration_s,
        predicted=prediction.segment,
        truth=truth,
        query=example.query,
        time_label=_time_label(window),
    )
    save_figure(figure, picture)
    write_json(picture.with_suffix(".json"), _as_json(prediction, window))
    console.print(f"picture: {escape(printable_line(str(picture)))}")
    return prediction


def _predict(cfg: DictConfig, sample: Sample, device: torch.device) -> Prediction:
    set_head_products(cfg.policy.head_products)
    task: Task = build(cfg.prompt)
    rollout: RolloutEngine = build(cfg.rollout)
    source: ModelSource = build(cfg.model)
    family = source.load_family()
    processor = source.load_processor()
    collator = PromptCollator(
        task=task,
        processor=processor,
        family=family,
        template_limits=build(cfg.template_limits),
        keep_frames=rollout.needs_frames,
    )
    prompts = collator([sample])
    policy = source.load_policy(processor).to(device)
    with closing(rollout):
        rollout.setup(policy=policy, tokenizer=processor.tokenizer)
        with awake(rollout):
            return predict_batch(
                task=task,
                rollout=rollout.greedy() if cfg.greedy else rollout,
                prompts=prompts,
                seed=cfg.seed,
                device=device,
            )[0]


def _segment(cfg: DictConfig, key: str) -> Segment | None:
    value: Any = cfg.get(key)
    if value is None:
        return None
    is_pair = isinstance(value, ListConfig) and len(value) == 2
    if not (is_pair and all(map(_is_seconds, value)) and value[0] < value[1]):
        raise ValueError(f"{key}: expected [start_s, end_s] with start_s < end_s, got {value}")
    return Segment(float(value[0]), float(value[1]))


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _window_of(loader: ClipLoader, video: Path, window: Segment | None) -> Segment | None:
    """Returns the window to show; raises ValueError if it is not inside the file."""
    if window is None:
        return None
    try:
        return literal_window(window, loader.decoder.probe(video).duration_s)
    except VideoError:
        raise
    except ValueError as error:
        raise ValueError(f"window: {video}: {error}") from error


def _in_file(segment: Segment | None, window: Segment | None) -> Segment | None:
    """Converts a segment from the window's seconds to the file's seconds."""
    if segment is None or window is None:
        return segment
    return Segment(segment.start_s + window.start_s, segment.end_s + window.start_s)


def _time_label(window: Segment | None) -> str:
    if window is None:
        return "time (s)"
    return f"time in the window (s); 0 is {window.start_s:g} s of the file"


def _oddity(segment: Segment | None, duration_s: float) -> str | None:
    """Returns why the segment cannot be correct for this clip; None if it can be."""
    if segment is None:
        return None
    if segment.start_s > segment.end_s:
        return "is reversed: its start is after its end"
    if segment.start_s >= duration_s:
        return f"starts after the end of the clip, which is {duration_s:.2f} s long"
    if segment.end_s > duration_s + 0.005:  # half of the printed precision
        return f"ends after the end of the clip, which is {duration_s:.2f} s long"
    return None


def _as_json(prediction: Prediction, window: Segment | None) -> dict[str, Any]:
    """Returns the prediction as a JSON object, with the segment also in seconds of the video file.

    `segment` and `truth` count from the start of the window. `window` and `segment_in_file` count
    from the start of the file. `oddity` describes an impossible segment.
    """
    return {
        **prediction.__dict__,
        "window": window,
        "segment_in_file": _in_file(prediction.segment, window),
        "oddity": _oddity(prediction.segment, prediction.duration_s),
    }


def _print(
    console: Console, prediction: Prediction, clip: VideoClip, window: Segment | None
) -> None:
    frames, _, height, width = clip.frames.shape
    part = f" (window: {_span(window)} of the file)" if window else ""
    console.print(
        f"clip: {clip.duration_s:.2f} s{part}, {frames} frames at {clip.sampled_fps:.3g} per "
        f"second, {width}x{height} pixels",
        soft_wrap=True,
    )
    thought = parse_answer(prediction.text).thought
    if thought:
        console.print(f"reasoning: {escape(printable(thought.strip()))}")
    segment = prediction.segment
    if segment is None:
        console.print(f"no segment in the answer: {escape(repr(prediction.text))}")
        return
    if window is None:
        console.print(f"segment: {_span(segment)}")
    else:
        console.print(
            f"segment: {_span(segment)} of the window, "
            f"{_span(_in_file(segment, window))} of the file",
            soft_wrap=True,
        )
    oddity = _oddity(segment, clip.duration_s)
    if oddity is not None:
        console.print(f"the segment {oddity}", soft_wrap=True)
    if prediction.truth is not None:
        console.print(f"temporal IoU with the truth: {prediction.score:.3f}")


def _span(segment: Segment | None) -> str:
    assert segment is not None
    return f"{segment.start_s:.2f} to {segment.end_s:.2f} s"
