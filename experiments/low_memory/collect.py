"""Collects the finished runs of the study into results.json and prints the table of README.md.

python experiments/low_memory/collect.py runs/low_memory
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCORES = ("miou", "r1_iou_0.5", "r1_iou_0.7")


def main(folder: Path) -> None:
    runs = [read(path) for path in sorted(folder.glob("*/seed_*/scores/metrics.json"))]
    if not runs:
        raise SystemExit(f"{folder}: expected SETTING/seed_N/scores/metrics.json, found none")
    (HERE / "results.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(runs)))


def read(file: Path) -> dict[str, Any]:
    """Returns the test scores of a run."""
    run = file.parents[1]
    metrics = json.loads(file.read_text(encoding="utf-8"))
    scores = {name: metrics[name] for name in SCORES}
    return {"setting": run.parent.name, "seed": int(run.name.removeprefix("seed_")), **scores}


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield "| setting | seeds | mIoU, mean (each seed) | R1@0.5 | R1@0.7 |"
    yield "|---|---|---|---|---|"
    for name in dict.fromkeys(run["setting"] for run in runs):
        mine = [run for run in runs if run["setting"] == name]
        each = ", ".join(f"{run['miou']:.3f}" for run in mine)
        mean = {key: statistics.fmean(run[key] for run in mine) for key in SCORES}
        cells = [name, str(len(mine)), f"{mean['miou']:.3f} ({each})"]
        cells += [f"{mean[key]:.1%}" for key in SCORES[1:]]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
