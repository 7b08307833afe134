"""Collects the runs of the study into results.json, the table of README.md and the picture.

python experiments/objectives/collect.py runs
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tvg.plot.save import save_figure
from tvg.plot.style import INK, MUTED, PREDICTED_COLOUR, TRUTH_COLOUR

HERE = Path(__file__).parent
SCORES = ("miou", "r1_iou_0.5", "r1_iou_0.7")
FINAL_STEPS = 20  # the length of completions is averaged over these last steps


def main(folder: Path) -> None:
    """Reads `folder`: study/SETTING/seed_N, cold/PROMPT_N and the scores of their exports."""
    runs = [read_run(path, folder) for path in sorted(folder.glob("study/*/seed_*"))]
    starts = [read_start(path, folder) for path in sorted(folder.glob("cold/*_*"))]
    if not runs:
        raise SystemExit(f"{folder}: expected study/SETTING/seed_N with metrics.csv, found none")
    text = json.dumps(runs + starts, indent=1) + "\n"
    (HERE / "results.json").write_text(text, encoding="utf-8")
    print("\n".join(table(runs + starts)))
    print(save_figure(picture(runs + starts), HERE / "study.png"))


def scores_of(path: Path, folder: Path) -> dict[str, float]:
    """Returns the metrics that tvg-evaluate wrote for a run's export."""
    place = folder / "scores" / folder.name / path.relative_to(folder) / "export" / "metrics.json"
    metrics = json.loads(place.read_text(encoding="utf-8"))
    return {name: metrics[name] for name in SCORES}


def read_run(path: Path, folder: Path) -> dict[str, Any]:
    """Returns the scores of a run's export and statistics of the run's logged metrics."""
    (file,) = path.rglob("metrics.csv")
    with file.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row.get(name)]

    return {
        "setting": path.parent.name,
        "seed": int(path.name.removeprefix("seed_")),
        **scores_of(path, folder),
        "length": statistics.fmean(column("train/completion/length")[-FINAL_STEPS:]),
        "clip_fraction": statistics.fmean(column("train/policy/clip_fraction")),
        "batches": len(column("train/reward/total")),
        "reward": [round(value, 3) for value in column("train/reward/total")[::5]],
    }


def read_start(path: Path, folder: Path) -> dict[str, Any]:
    """Returns the scores of a cold start."""
    name, _, seed = path.name.rpartition("_")
    return {"setting": f"cold start ({name})", "seed": int(seed), **scores_of(path, folder)}


def by_setting(runs: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    names = dict.fromkeys(run["setting"] for run in runs)
    mean = {n: statistics.fmean(r["miou"] for r in runs if r["setting"] == n) for n in names}
    for name in sorted(names, key=lambda n: -mean[n]):
        yield name, sorted((r for r in runs if r["setting"] == name), key=lambda r: r["seed"])


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    heads = "setting", "mIoU, mean ± std (each seed)", "R1@0.5", "R1@0.7"
    yield f"| {' | '.join((*heads, 'tokens', 'batches', 'clipped'))} |"
    yield "|---|---|---|---|---|---|---|"
    for name, mine in by_setting(runs):
        mious = [run["miou"] for run in mine]
        each = ", ".join(f"{miou:.3f}" for miou in mious)
        cells = [name, f"{spread(mious)} ({each})"]
        cells += [
            f"{statistics.fmean(r[key] for r in mine):.1%}" for key in ("r1_iou_0.5", "r1_iou_0.7")
        ]
        for key, style in (("length", ".1f"), ("batches", ".0f"), ("clip_fraction", ".2%")):
            known = [run[key] for run in mine if key in run]
            cells.append(format(statistics.fmean(known), style) if known else "")
        yield "| " + " | ".join(cells) + " |"


def spread(values: list[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def picture(runs: list[dict[str, Any]]) -> Figure:
    groups = list(by_setting(runs))[::-1]
    figure = Figure(figsize=(8.4, 0.36 * len(groups) + 1.3), layout="constrained")
    axes = figure.subplots()
    for place, (name, mine) in enumerate(groups):
        colour = MUTED if name.startswith("cold start") else TRUTH_COLOUR
        mious = [run["miou"] for run in mine]
        mean = statistics.fmean(mious)
        axes.plot([min(mious), max(mious)], [place, place], color=colour, lw=2, alpha=0.4)
        axes.plot(mious, [place] * len(mious), "o", color=colour, ms=5)
        axes.plot([mean], [place], "|", color=PREDICTED_COLOUR, ms=16, mew=2.5)
    axes.set_yticks(range(len(groups)), [name for name, _ in groups], color=INK)
    axes.set_xlabel("mIoU on the test queries: each seed (dot) and their mean (bar)", color=MUTED)
    axes.grid(axis="x", color=MUTED, alpha=0.2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]))
