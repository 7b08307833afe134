"""Times one GRPO step at the shapes of the released checkpoints, on one GPU (`make bench-gpu`).

The weights are random: bfloat16, or float32 that computes in bfloat16 (autocast). There is one
prompt, with gradient checkpointing and AdamW. The vision trunk is frozen; merger and language model
are trained. Both methods (`repeated` and `shared_prefix`) alternate after a warm-up. Seconds are
wall-clock medians with the device synchronised. Peak memory is the memory that torch allocated,
weights included. If a method runs out of memory, the table records this. `--device cpu --shapes 5m`
tests the same code on a CPU.

    python experiments/benchmarks/common/gpu.py [--shapes 3b 7b] [--precisions bf16 autocast]

`gpu_runs.py` measures complete runs, with ZeRO and checkpoints.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common.stages import METHODS, Bench, make_bench

RESULTS = Path(__file__).parents[1] / "results"
STAGES = ("learning", "sampling", "step")
PRECISIONS = {"bf16": (torch.bfloat16, None), "autocast": (torch.float32, torch.bfloat16)}
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0}  # bfloat16, dense; NVIDIA's data sheets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["3b", "7b"])
    parser.add_argument(
        "--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS)
    )
    parser.add_argument("--prompt-tokens", type=int, default=3700)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--completion-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for shape, precision in itertools.product(args.shapes, args.precisions):
        rows += measure_all(shape, precision, args)
        free_memory(args.device)
        if args.device == "cuda":
            write(rows, args)
    print(table(rows))


def measure_all(shape: str, precision: str, args: Any) -> list[dict[str, Any]]:
    dtype, autocast = PRECISIONS[precision]
    try:
        bench = make_bench(
            shape,
            num_prompt_tokens=args.prompt_tokens,
            group_size=args.group_size,
            num_completion_tokens=args.completion_tokens,
            device=args.device,
            dtype=dtype,
            autocast=autocast,
            checkpointing=True,
        )
    except torch.OutOfMemoryError:
        print(f"{shape}, {precision}: the weights do not fit", flush=True)
        return []
    rows = [row for stage in STAGES for row in measure(bench, shape, stage, args)]
    return [{"precision": precision, **row} for row in rows]


def measure(bench: Bench, shape: str, stage: str, args: Any) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    peaks: dict[str, float] = {}
    for number in range(args.rounds + 1):  # the first round is the warm-up
        for method in METHODS:
            if peaks.get(method) == float("inf"):
                continue
            try:
                taken, peaks[method] = run_once(bench, stage, method, args.device)
            except torch.OutOfMemoryError:
                peaks[method] = float("inf")
                continue
            if number:
                seconds[method].append(taken)
    rows = []
    for method in METHODS:
        is_done = peaks[method] != float("inf")
        rows.append(
            {
                "shape": shape,
                "P": args.prompt_tokens,
                "G": args.group_size,
                "C": args.completion_tokens,
                "stage": stage,
                "method": method,
                "seconds": statistics.median(seconds[method]) if is_done else None,
                "peak_gib": round(peaks[method], 2) if is_done else None,
                "mfu": mfu(bench, stage, statistics.median(seconds[method])) if is_done else None,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def run_once(bench: Bench, stage: str, method: str, device: str) -> tuple[float, float]:
    """Returns the seconds and the peak GiB of one stage."""
    bench.use(method)
    free_memory(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    begin = time.perf_counter()
    getattr(bench, stage)(method)
    if device == "cuda":
        torch.cuda.synchronize()
    taken = time.perf_counter() - begin
    return taken, torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0


def mfu(bench: Bench, stage: str, seconds: float) -> float | None:
    """Returns the model FLOPs utilisation of the learning stage; None if the peak is unknown.

    Counts 8 operations per weight and token of the shared row: two forward passes (policy and
    reference) and a backward pass that costs as much as two forward passes. Recomputation under
    checkpointing, attention and vision are not counted.
    """
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((value for card, value in PEAK_TFLOPS.items() if card in name), None)
    if stage != "learning" or peak is None:
        return None
    weights = sum(
        p.numel() for p in bench.policy.model.model.language_model.layers.parameters() if p.ndim > 1
    )
    num_tokens = bench.prompts.input_ids.shape[1] + bench.completion_ids.numel()
    return round(8 * weights * num_tokens / seconds / (peak * 1e12), 3)


def free_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def write(rows: list[dict[str, Any]], args: Any) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "grpo_step_gpu.json").write_text(json.dumps(rows, indent=1) + "\n")
    head = (
        f"# A GRPO step on one {torch.cuda.get_device_name()}, {date.today()}\n\n"
        f"`make bench-gpu`, torch {torch.__version__}; wall-clock seconds, "
        f"medians of {args.rounds} rounds.\n\n"
    )
    (RESULTS / "grpo_step_gpu.md").write_text(head + table(rows) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    names = ("shape", "precision", "P", "G", "C", "stage", "method", "seconds", "peak_gib", "mfu")
    lines = ["| " + " | ".join(names) + " | ratio |", "|---" * (len(names) + 1) + "|"]
    for slow, fast in zip(rows[::2], rows[1::2], strict=True):
        known = slow["seconds"] is not None and fast["seconds"] is not None
        ratio = f"{slow['seconds'] / fast['seconds']:.2f}x" if known else "out of memory"
        for row, last in ((slow, ""), (fast, ratio)):
            cells = [shown(row[name]) for name in names]
            lines.append("| " + " | ".join(cells) + f" | {last} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
