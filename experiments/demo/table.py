"""Copies the results of the demo's seeds into this folder and prints the table of README.md.

python experiments/demo/table.py runs/demo/seed_*/results.json
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
POLICIES = {
    "chance": "chance (random training segments)",
    "constant": "best constant answer",
    "sft": "cold start (SFT)",
    "grpo": "GRPO",
}


def main(paths: list[str]) -> None:
    runs = sorted((json.loads(Path(path).read_text()) for path in paths), key=lambda r: r["seed"])
    for run in runs:
        for policy in POLICIES:
            run[policy].pop("model", None)  # a path on the machine of the run
        (HERE / f"seed_{run['seed']}.json").write_text(json.dumps(run, indent=2) + "\n")
    seeds = [str(run["seed"]) for run in runs]
    print("| mIoU | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |")
    print("|---|" + "---|" * (len(seeds) + 1))
    for name, label in POLICIES.items():
        values = [run[name]["miou"] for run in runs]
        print(row(label, [f"{v:.3f}" for v in values], f"{statistics.fmean(values):.3f}"))
    gains = [run["gain"] for run in runs]
    shown = [f"{g['miou']:+.3f} ({g['ci95'][0]:+.3f} to {g['ci95'][1]:+.3f})" for g in gains]
    print(row("gain of GRPO (95 %)", shown, f"{statistics.fmean(g['miou'] for g in gains):+.3f}"))
    for metric in ("r1_iou_0.3", "r1_iou_0.5", "r1_iou_0.7", "parse_rate", "exact_format_rate"):
        pairs = [(run["sft"][metric], run["grpo"][metric]) for run in runs]
        means = [statistics.fmean(values) for values in zip(*pairs, strict=True)]
        shown = [f"{a:.3f} → {b:.3f}" for a, b in pairs]
        print(row(f"{metric}, SFT → GRPO", shown, f"{means[0]:.3f} → {means[1]:.3f}"))
    totals = [run["seconds"]["total"] for run in runs]
    print(row("seconds in total", [f"{t:.0f}" for t in totals], f"{statistics.fmean(totals):.0f}"))
    print(f"\nn = {runs[0]['grpo']['n']} test queries; seconds by stage: {runs[0]['seconds']}")


def row(label: str, cells: list[str], mean: str) -> str:
    return f"| {label} | " + " | ".join(cells) + f" | {mean} |"


if __name__ == "__main__":
    main(sys.argv[1:])
