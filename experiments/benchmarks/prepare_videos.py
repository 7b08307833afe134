"""Compares the frame cache with float32 tensors, in videos per second and bytes per clip.

The float32 method decodes every frame of a file to RGB and keeps the sampled frames. It resizes
them as qwen-vl-utils does (all frames together) and writes a float32 tensor. Both methods use the
same number and kind of worker processes, and their start-up is included in the time. The methods
alternate, and the report contains medians.

python experiments/benchmarks/prepare_videos.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from tvg.data.cache.frames import FrameCache
from tvg.data.video.clip import ClipLoader
from tvg.data.video.decode import VideoDecoder
from tvg.data.video.decord_decoder import DecordDecoder
from tvg.data.video.pyav_decoder import PyAVDecoder
from tvg.data.video.sampling import FrameSampling, frame_indices
from tvg.preparation.frames import ClipRequest, prepare_frames
from tvg.preparation.pool import Failure, run_all

RESULTS = Path(__file__).parent / "results" / "prepare_videos.json"
WIDTH, HEIGHT, FPS, LENGTH_S = 640, 360, 25, 30
DECODERS: dict[str, type[PyAVDecoder] | type[DecordDecoder]] = {
    "pyav": PyAVDecoder,
    "decord": DecordDecoder,
}
GOALS = {"videos_per_s": 2.0, "bytes": 3.5}


def texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Returns a picture with detail of every size: uint8 [height, width, 3]."""
    total = np.zeros((height, width, 3))
    for size in (8, 20, 60, 160):
        coarse = rng.uniform(-1, 1, (height // size + 1, width // size + 1, 3))
        total += np.kron(coarse, np.ones((size, size, 1)))[:height, :width] * size**0.5
    total -= total.min()
    return (total / total.max() * 255).astype(np.uint8)


@dataclass(frozen=True)
class DrawVideo:
    """Writes a video of patches moving over a moving background, with x264's default settings."""

    folder: Path

    def start(self) -> None:
        pass

    def __call__(self, seed: int) -> None:
        path = self.folder / f"{seed:03d}.mp4"
        if path.exists():
            return
        rng = np.random.default_rng(seed)
        ground = texture(rng, HEIGHT + 240, WIDTH + 320)
        patches = [(texture(rng, 120, 90), *rng.uniform(0.5, 2, (2, 2))) for _ in range(4)]
        temporary = path.with_name(f".{path.name}")
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.thread_count = 1
            for index in range(FPS * LENGTH_S):
                t = index / FPS
                y, x = (
                    round(120 + 100 * np.sin(0.21 * t + seed)),
                    round(160 + 150 * np.sin(0.13 * t)),
                )
                picture = ground[y : y + HEIGHT, x : x + WIDTH].astype(np.int16)
                for patch, speed, phase in patches:
                    top, left = 0.5 + 0.5 * np.sin(speed * t + phase)
                    row, column = round(top * (HEIGHT - 120)), round(left * (WIDTH - 90))
                    picture[row : row + 120, column : column + 90] = patch
                picture += rng.integers(-4, 5, (HEIGHT, WIDTH, 1), dtype=np.int16)  # sensor noise
                pixels = picture.clip(0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        os.replace(temporary, path)


@dataclass(frozen=True)
class SaveFloats:
    """Runs the float32 method on one video; returns the bytes written."""

    folder: Path
    loader: ClipLoader

    def start(self) -> None:
        torch.set_num_threads(1)
        self.loader.decoder.import_library()

    def __call__(self, path: Path) -> int:
        info = self.loader.decoder.probe(path)
        num_shown, *size = self.loader.frame_count_and_size(info)
        indices = set(frame_indices(0, info.num_frames - 1, num_shown))
        shown = []
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for index, frame in enumerate(container.decode(stream)):
                pixels = frame.to_ndarray(format="rgb24")
                if index in indices:
                    shown.append(pixels)
        clip = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float()
        clip = interpolate(clip, size=size, mode="bicubic", antialias=True).clamp(0, 255).round()
        saved = self.folder / f"{path.stem}.safetensors"
        save_file({"frames": clip.contiguous()}, saved)
        return saved.stat().st_size


def timed(job: Callable[[], Any]) -> tuple[Any, float, float]:
    """Returns a job's result, its wall-clock seconds and its CPU seconds, workers included."""

    def cpu_s() -> float:
        usages = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    begin, cpu_begin = time.perf_counter(), cpu_s()
    result = job()
    return result, time.perf_counter() - begin, cpu_s() - cpu_begin


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def one_round(
    paths: list[Path], work: Path, loader: ClipLoader, num_workers: int
) -> dict[str, dict[str, float]]:
    """Runs both methods and checks that their pixels are equal."""
    floats, cache = (
        emptied(work / "floats"),
        FrameCache(folder=emptied(work / "cache"), loader=loader),
    )
    theirs, theirs_s, theirs_cpu_s = timed(
        lambda: run_all(
            SaveFloats(floats, loader),
            paths,
            num_workers=num_workers,
            timeout_s=120.0,
            label="float32 tensors",
        )
    )
    assert not any(isinstance(size, Failure) for size in theirs), theirs
    requests = [ClipRequest(path) for path in paths]
    ours, ours_s, ours_cpu_s = timed(
        lambda: prepare_frames(requests, cache, num_workers=num_workers, timeout_s=120.0)
    )
    assert ours.written == len(paths), ours
    saved = load_file(floats / f"{paths[0].stem}.safetensors")["frames"]
    assert torch.equal(saved, cache.load(paths[0]).frames.float())
    num = len(paths)
    return {
        "float32": {
            "videos_per_s": num / theirs_s,
            "cpu_s_per_video": theirs_cpu_s / num,
            "bytes_per_clip": sum(theirs) / num,
        },
        "cache": {
            "videos_per_s": num / ours_s,
            "cpu_s_per_video": ours_cpu_s / num,
            "bytes_per_clip": ours.num_bytes / num,
        },
    }


def summary(rounds: list[dict[str, dict[str, float]]], settings: dict[str, Any]) -> dict[str, Any]:
    ways = {
        way: {name: statistics.median(r[way][name] for r in rounds) for name in rounds[0][way]}
        for way in rounds[0]
    }
    theirs, ours = ways["float32"], ways["cache"]
    ratios = {
        "videos_per_s": ours["videos_per_s"] / theirs["videos_per_s"],
        "cpu_s_per_video": theirs["cpu_s_per_video"] / ours["cpu_s_per_video"],
        "bytes": theirs["bytes_per_clip"] / ours["bytes_per_clip"],
    }
    return {"settings": settings, "medians": ways, "ratios": ratios, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tvg-prepare")
    parser.add_argument("--num-videos", type=int, default=60)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--num-rounds", type=int, default=3)
    parser.add_argument("--decoder", choices=DECODERS, default="pyav")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()

    videos = args.folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    drawn = run_all(
        DrawVideo(videos),
        range(args.num_videos),
        num_workers=args.num_workers,
        timeout_s=None,
        label="drawing",
    )
    assert not any(isinstance(result, Failure) for result in drawn), drawn
    paths = sorted(videos.glob("*.mp4"))[: args.num_videos]
    decoder: VideoDecoder = DECODERS[args.decoder](num_threads=1)
    loader = ClipLoader(sampling=FrameSampling(), decoder=decoder, timeout_s=None)
    rounds = [
        one_round(paths, args.folder, loader, args.num_workers) for _ in range(args.num_rounds)
    ]
    settings = {
        "num_videos": len(paths),
        "video": f"{WIDTH}x{HEIGHT}, {LENGTH_S} s at {FPS} fps, libx264",
        "num_workers": args.num_workers,
        "num_rounds": args.num_rounds,
        "decoder": args.decoder,
        "num_cpus": os.cpu_count(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    report = summary(rounds, settings)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(report, indent=2) + "\n")
    for way, values in report["medians"].items():
        print(f"{way:8}" + "".join(f"  {name} {value:,.3f}" for name, value in values.items()))
    for name, goal in GOALS.items():
        ratio = report["ratios"][name]
        print(f"{name}: {ratio:.2f} x (goal {goal}: {'met' if ratio >= goal else 'MISSED'})")
    print(f"CPU seconds per video: {report['ratios']['cpu_s_per_video']:.2f} x fewer")


if __name__ == "__main__":
    main()
