"""Runs the demo: generates videos, trains a cold start and GRPO, and evaluates both."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from tvg.build import build_data
from tvg.config import compose
from tvg.config.run_folder import claimed
from tvg.core.interruption import advising
from tvg.core.metrics import paired_bootstrap
from tvg.core.text_files import write_json, write_text
from tvg.core.writing import remove_leftovers
from tvg.data.annotations import SPLITS
from tvg.data.cache.frames import FrameCache
from tvg.jobs.evaluate import PREDICTIONS_FILE, evaluate
from tvg.jobs.train import EXPORT, train
from tvg.plot.filmstrip import draw_filmstrip
from tvg.plot.save import save_figure
from tvg.preparation.frames import prepare_frames, unique_requests
from tvg.report.console import make_console
from tvg.task.baseline import best_constant_segment, blind_predictions, random_segments
from tvg.task.grounding import segment_metrics
from tvg.task.predictions import Prediction, known_scores, read_predictions
from tvg.training.datamodule_base import PromptDataModule
from tvg.types import GroundingExample, VideoClip

log = logging.getLogger(__name__)

NUM_PICTURES = 3
DECODING_LIMIT_S = 60.0  # per clip; decoding one takes milliseconds
LABELS = {
    "chance": "chance (random training segments)",
    "constant": "best constant answer",
    "sft": "cold start (SFT)",
    "grpo": "GRPO",
}
TRAINED = ("sft", "grpo")
STAGES = (*TRAINED, *(f"eval_{stage}" for stage in TRAINED), "pictures")
RESULTS_FILE = "results.json"
UNFINISHED = "unfinished.json"


def run_demo(
    cfg: DictConfig,
    *,
    seed: int,
    num_threads: int,
    shared: Sequence[str],
    sft: Sequence[str],
    grpo: Sequence[str],
    evaluation: Sequence[str],
) -> float:
    """Runs all stages in this process. Each stage is a separate run in a subfolder of `run_dir`.

    Args:
        cfg: the config of the demo.
        seed: seed of weights, data order and random draws.
        num_threads: number of PyTorch threads while the demo runs.
        shared: overrides for all stages.
        sft: further overrides for the cold start.
        grpo: further overrides for the reinforcement learning.
        evaluation: further overrides for the evaluations.

    Returns:
        mIoU after GRPO on the test queries.
    """
    _refuse_lost_overrides()
    with claimed(cfg, "demo") as folder:
        folder.begin()
        advice = "finished stages and checkpoints are kept: run the same command to continue"
        with advising(advice), _torch_threads(num_threads):
            return _run_stages(folder.path, seed, shared, sft, grpo, evaluation)


@contextmanager
def _torch_threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_stages(
    run_dir: Path,
    seed: int,
    shared: Sequence[str],
    sft: Sequence[str],
    grpo: Sequence[str],
    evaluation: Sequence[str],
) -> float:
    remove_leftovers(run_dir)
    _begin(run_dir, [seed, *shared, *sft, *grpo, *evaluation])
    common = [*shared, f"seed={seed}"]
    clock = _Clock()
    with clock.stage("data"):
        world = build_data(compose("train", [*common, *_place(run_dir, "data")]).cfg)
        world.prepare_data()
        _decode_all(world)
    with clock.stage("sft"):
        train(compose("train", [*common, *sft, *_place(run_dir, "sft")]).cfg)
    with clock.stage("grpo"):
        start = f"model.path={run_dir / 'sft' / EXPORT}"
        train(compose("train", [*common, *grpo, start, *_place(run_dir, "grpo")]).cfg)
    with clock.stage("eval"):
        metrics = blind_baselines(world.examples("train"), world.examples("test"), seed=seed)
        for stage in TRAINED:
            path, place = f"model.path={run_dir / stage / EXPORT}", _place(run_dir, f"eval_{stage}")
            metrics[stage] = evaluate(compose("evaluate", [*common, *evaluation, path, *place]).cfg)
    done = {s: read_predictions(run_dir / f"eval_{s}" / PREDICTIONS_FILE) for s in TRAINED}
    assert [p.qid for p in done["sft"]] == [p.qid for p in done["grpo"]]
    gain = paired_bootstrap(*(known_scores(done[stage]) for stage in TRAINED), seed=seed)
    seconds = clock.seconds()
    write_json(run_dir / RESULTS_FILE, {**metrics, "gain": gain, "seconds": seconds, "seed": seed})
    (run_dir / UNFINISHED).unlink()
    _draw_examples(run_dir / "pictures", world, done["grpo"])
    _print(make_console(), run_dir, metrics, gain, seconds)
    return float(metrics["grpo"]["miou"])


def _decode_all(world: PromptDataModule) -> None:
    """Fills the frame cache on all CPU cores, because the first epoch would use only one."""
    clips = world.clips
    if not isinstance(clips, FrameCache):
        return
    examples = [example for split in SPLITS for example in world.examples(split)]
    num_workers = len(os.sched_getaffinity(0))
    try:
        prepare_frames(
            unique_requests(examples), clips, num_workers=num_workers, timeout_s=DECODING_LIMIT_S
        )
    except ValueError as error:
        # The disk is full, or another demo writes to the cache. The cache is optional.
        log.warning("%s; clips will be decoded during training", error)


def blind_baselines(
    train_examples: Sequence[GroundingExample],
    test_examples: Sequence[GroundingExample],
    *,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Returns the metrics of baselines that ignore the video.

    "chance" answers with random segments of the training set. "constant" always answers with the
    same fractions of the clip, which score best on the training set.
    """
    num = len(test_examples)
    guesses = {
        "chance": random_segments(train_examples, num, seed=seed),
        "constant": [best_constant_segment(train_examples)] * num,
    }
    return {
        name: segment_metrics(blind_predictions(test_examples, segments), seed=seed)
        for name, segments in guesses.items()
    }


class _Clock:
    """Measures the wall-clock seconds of each stage."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        log.info("demo: %s", name)
        started = time.monotonic()
        yield
        self._stages[name] = round(time.monotonic() - started, 1)

    def seconds(self) -> dict[str, float]:
        return {**self._stages, "total": round(time.monotonic() - self._started, 1)}


def _refuse_lost_overrides() -> None:
    """Refuses command-line overrides that would have no effect on the stages.

    Raises:
        ValueError: there are such overrides; the message shows how to pass them to the stages.
    """
    if not HydraConfig.initialized():
        return
    own = ("experiment=", "demo.", "job.", "name=", "hydra.", "run_dir=")
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    lost = [o for o in map(str, words) if not o.lstrip("+~").startswith(own)]
    if lost:
        words = ",".join(f'"{word}"' for word in lost)
        raise ValueError(
            f"experiment=demo runs stages with separate configs, so {', '.join(lost)} would have "
            f"no effect: pass it with 'job.shared=[\"data=synthetic_demo\",{words}]', or, for one "
            "stage, with job.sft, job.grpo or job.evaluation (such a list replaces the default in "
            "conf/experiment/demo.yaml, so repeat the entries of the default)"
        )


def _begin(run_dir: Path, overrides: Sequence[Any]) -> None:
    """Removes an earlier demo's results, unless it was interrupted and had the same overrides."""
    marker, kind = run_dir / UNFINISHED, json.dumps(list(overrides))
    if marker.is_file() and marker.read_text(encoding="utf-8") == kind:
        log.info("demo: resuming the interrupted run in %s", run_dir)
        return
    (run_dir / RESULTS_FILE).unlink(missing_ok=True)  # of the previous demo
    for stage in STAGES:
        shutil.rmtree(run_dir / stage, ignore_errors=True)
    write_text(marker, kind)


def _place(run_dir: Path, stage: str) -> list[str]:
    place = [f"run_dir={run_dir / stage}", f"name={run_dir.name}_{stage}"]
    return [*place, "resume=auto"] if stage in TRAINED else place


def _draw_examples(folder: Path, world: PromptDataModule, predictions: list[Prediction]) -> None:
    """Draws filmstrips of the first few test queries, like `tvg-predict`."""
    for example, prediction in list(zip(world.examples("test"), predictions, strict=True))[
        :NUM_PICTURES
    ]:
        assert example.video_path is not None
        clip = world.clips.load(example.video_path, example.window, example.lead_in)
        assert isinstance(clip, VideoClip), type(clip)
        figure = draw_filmstrip(
            clip.frames,
            clip.frame_times_s,
            duration_s=clip.duration_s,
            predicted=prediction.segment,
            truth=example.segment,
            query=example.query,
        )
        save_figure(figure, folder / f"{example.qid.replace(':', '_')}.png")


def _print(
    console: Console,
    run_dir: Path,
    metrics: dict[str, dict[str, Any]],
    gain: dict[str, Any],
    seconds: dict[str, float],
) -> None:
    num = metrics["grpo"]["n"]
    table = Table(title=f"{num} generated test queries", title_justify="left")
    table.add_column("policy")
    for column in ("mIoU (95 %)", "R1@0.3", "R1@0.5", "R1@0.7", "parsed", "exact format"):
        table.add_column(column, justify="right")
    for name, values in metrics.items():
        low, high = values["ci95"]["miou"]
        shares = [values[k] for k in ("r1_iou_0.3", "r1_iou_0.5", "r1_iou_0.7", "parse_rate")]
        exact = values.get("exact_format_rate")  # blind baselines write no answers
        miou = f"{values['miou']:.3f} ({low:.3f}-{high:.3f})"
        cells = [f"{share:.1%}" for share in shares]
        table.add_row(LABELS[name], miou, *cells, "-" if exact is None else f"{exact:.1%}")
    console.print(table)
    low, high = gain["ci95"]
    console.print(
        f"GRPO gains {gain['miou']:+.3f} mIoU over the cold start (95 %: {low:+.3f} to {high:+.3f})"
    )
    console.print(", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    for what, where in {
        "results": run_dir / RESULTS_FILE,
        "pictures": run_dir / "pictures",
        "dashboard": "make dashboard",
        "your video": f"tvg-predict model.path={run_dir / 'grpo' / EXPORT} video=FILE query='...'",
    }.items():
        console.print(f"{what + ':':<12}{where}", soft_wrap=True, highlight=False, markup=False)
