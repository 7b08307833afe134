"""Measures time and memory to read 100,000 annotations; the goal is 5 s and 500 MiB.

    python experiments/benchmarks/read_annotations.py

Writes random annotations in three formats, with empty video files. Reads each format in a separate
process with the rules of training. Seconds are those of the reader only. Memory is the peak of the
process, and the part that reading added after the imports. Exits with code 1 if a goal is missed.
The goal for the time is compared with CPU seconds, because machines are shared.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUERIES_PER_VIDEO = 5
GOAL_S, GOAL_MIB = 5, 500
WORDS = (
    "a",
    "person",
    "opens",
    "the",
    "door",
    "walks",
    "slowly",
    "with",
    "red",
    "cup",
    "of",
    "tea",
)

# Runs in a separate process. The imports (mainly torch) need memory before anything is read, so the
# memory that reading adds is reported separately.
READ = """
import json, resource, sys, time
def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
from tvg.data import readers
before_mib, started, started_cpu = peak_mib(), time.perf_counter(), time.process_time()
result = getattr(readers, sys.argv[1])(
    sys.argv[2], sys.argv[3], clamp_ends=True, drop_invalid=True
)
print(json.dumps({
    "seconds": time.perf_counter() - started,
    "cpu_seconds": time.process_time() - started_cpu,
    "queries": result.report.num_queries,
    "before_mib": before_mib,
    "peak_mib": peak_mib(),
}))
"""


def draw_videos(num_queries: int, rng: random.Random) -> dict[str, dict[str, list[Any] | float]]:
    videos: dict[str, dict[str, list[Any] | float]] = {}
    for index in range(num_queries // QUERIES_PER_VIDEO):
        duration_s = round(rng.uniform(10, 300), 2)
        starts_s = [round(rng.uniform(0, 0.8) * duration_s, 2) for _ in range(QUERIES_PER_VIDEO)]
        videos[f"v{index:06d}"] = {
            "duration": duration_s,
            # One in five ends late, as in Charades-STA.
            "timestamps": [
                [s, round(s + rng.uniform(0.05, 0.25) * duration_s, 2)] for s in starts_s
            ],
            "sentences": [" ".join(rng.choices(WORDS, k=12)) + "." for _ in starts_s],
        }
    return videos


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_charades(path: Path, videos: dict[str, Any]) -> None:
    path.write_text(json.dumps(videos))


def write_jsonl(path: Path, videos: dict[str, Any]) -> None:
    write_lines(
        path,
        [
            {
                "video": f"{video}.mp4",
                "query": sentence,
                "segment": segment,
                "duration": entry["duration"],
                "pass_rate": 0.25,
            }
            for video, entry in videos.items()
            for segment, sentence in zip(entry["timestamps"], entry["sentences"], strict=True)
        ],
    )


def write_timelens(path: Path, videos: dict[str, Any]) -> None:
    write_lines(
        path,
        [
            {
                "source": "drawn",
                "video_path": f"{video}.mp4",
                "duration": entry["duration"],
                "events": [
                    {"query": sentence, "span": [segment]}
                    for segment, sentence in zip(
                        entry["timestamps"], entry["sentences"], strict=True
                    )
                ],
            }
            for video, entry in videos.items()
        ],
    )


FORMATS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "read_charades": write_charades,
    "read_jsonl": write_jsonl,
    "read_timelens_100k": write_timelens,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-queries", type=int, default=100_000)
    args = parser.parse_args()
    videos = draw_videos(args.num_queries, random.Random(0))
    with tempfile.TemporaryDirectory() as name:
        video_dir = Path(name) / "videos"
        video_dir.mkdir()
        for video in videos:
            (video_dir / f"{video}.mp4").touch()
        missed = False
        for reader, write in FORMATS.items():
            path = Path(name) / reader
            write(path, videos)
            command = [sys.executable, "-c", READ, reader, str(path), str(video_dir)]
            found = json.loads(subprocess.check_output(command))
            added_mib = found["peak_mib"] - found["before_mib"]
            print(
                f"{reader}: {found['queries']:,} queries in {found['seconds']:.2f} s "
                f"({found['cpu_seconds']:.2f} s of CPU), reading added {added_mib:.0f} MiB, "
                f"peak of the process {found['peak_mib']:.0f} MiB"
            )
            missed |= found["cpu_seconds"] > GOAL_S or added_mib > GOAL_MIB
    if missed:
        sys.exit(f"the goal was missed: expected at most {GOAL_S} s of CPU and {GOAL_MIB} MiB")


if __name__ == "__main__":
    main()
