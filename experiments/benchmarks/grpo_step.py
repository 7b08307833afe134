"""Compares one GRPO step with prompts repeated per completion and with prompts computed once.

There are three stages: learning (reference, policy, backward), sampling (prefill and C tokens) and
step (both, and the optimizer). Times are medians of CPU seconds on one thread, and both methods
alternate. Peak memory is the memory that a stage adds, measured in a separate process. The model is
a 5.3M-parameter Qwen2.5-VL with random float32 weights and one prompt. Its vision trunk is frozen;
merger and language model are trained.

    python experiments/benchmarks/grpo_step.py [--rounds 3] [--quick] [--resume]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from common.stages import METHODS, Bench, gradient_error, make_bench

RESULTS = Path(__file__).parent / "results"
STAGES = ("learning", "sampling", "step")
PROMPT_TOKENS, GROUP_SIZES, COMPLETION_TOKENS = (256, 1024, 2048), (2, 4, 8, 16), (64, 128)
LONG_S = 8.0  # stages that take longer are timed once
Case = tuple[int, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only P=1024, G=8 and 16, C=64")
    parser.add_argument("--resume", action="store_true", help="skip the cases in the results file")
    parser.add_argument("--peaks", nargs=4, metavar=("METHOD", "P", "G", "C"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peaks:
        method, *case = args.peaks
        print(json.dumps(peaks_mib(method, tuple(map(int, case)))))
        return
    cases = [(p, g, c) for p in PROMPT_TOKENS for g in GROUP_SIZES for c in COMPLETION_TOKENS]
    if args.quick:
        cases = [(1024, 8, 64), (1024, 16, 64)]
    rows = known_rows() if args.resume else []
    done = {(row["P"], row["G"], row["C"]) for row in rows}
    for case in cases:
        if case in done:
            continue
        rows += measure(case, rounds=args.rounds)
        if not args.quick:
            write(rows, args.rounds)
    print(table(rows))


def measure(case: Case, *, rounds: int) -> list[dict[str, Any]]:
    p, g, c = case
    bench = bench_of(case)
    error = gradient_error(bench)
    peaks = {method: peaks_in_a_process(method, case) for method in METHODS}
    rows = []
    for stage in STAGES:
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        while len(seconds[METHODS[0]]) < rounds:
            for method in METHODS:
                seconds[method].append(timed(bench, stage, method))
            if sum(seconds[METHODS[0]]) > LONG_S:
                break
        median = {method: statistics.median(seconds[method]) for method in METHODS}
        for method in METHODS:
            rows.append(
                {
                    "P": p,
                    "G": g,
                    "C": c,
                    "stage": stage,
                    "method": method,
                    "seconds": round(median[method], 4),
                    "rounds": len(seconds[method]),
                    "peak_mib": round(peaks[method][stage], 1),
                    "ratio_time": round(median["repeated"] / median["shared_prefix"], 2),
                    "ratio_mem": round(peaks["repeated"][stage] / peaks["shared_prefix"][stage], 2),
                    "max_rel_grad_err": error,
                }
            )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def bench_of(case: Case) -> Bench:
    p, g, c = case
    return make_bench("5m", num_prompt_tokens=p, group_size=g, num_completion_tokens=c)


def timed(bench: Bench, stage: str, method: str) -> float:
    bench.use(method)
    begin = time.process_time()
    getattr(bench, stage)(method)
    return time.process_time() - begin


def peaks_mib(method: str, case: Case) -> dict[str, float]:
    """Returns the peak memory in MiB that each stage adds to this process."""
    bench = bench_of(case)
    small = make_bench("5m", num_prompt_tokens=128, group_size=2, num_completion_tokens=2)
    small.step(method)  # libraries allocate on their first use
    del small
    peaks = {}
    for stage in STAGES:
        bench.use(method)
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # return freed memory, or it would not be counted
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = memory_mib("VmRSS")
        getattr(bench, stage)(method)
        peaks[stage] = memory_mib("VmHWM") - before
    return peaks


def memory_mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise AssertionError(name)


def peaks_in_a_process(method: str, case: Case) -> dict[str, float]:
    command = [sys.executable, __file__, "--peaks", method, *map(str, case)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def known_rows() -> list[dict[str, Any]]:
    path = RESULTS / "grpo_step_cpu.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return rows


def write(rows: list[dict[str, Any]], rounds: int) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "grpo_step_cpu.json").write_text(json.dumps(rows, indent=1) + "\n")
    head = (
        f"# A GRPO step on one CPU thread, {date.today()}\n\n"
        f"`python experiments/benchmarks/grpo_step.py --rounds {rounds}` on {machine()}, "
        f"torch {torch.__version__}.\nTimes are CPU seconds: medians of up to {rounds} rounds "
        f"(fewer if a stage took {LONG_S:.0f} s).\nBoth methods alternate. Memory is the number of "
        "MiB that a stage adds at its peak, with each method\nin a separate process. Ratios are "
        "repeated / shared prefix. The gradient error is the largest\nrelative error of a "
        "parameter, in float32.\n\n"
    )
    (RESULTS / "grpo_step_cpu.md").write_text(head + table(rows) + "\n")


def machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def table(rows: list[dict[str, Any]]) -> str:
    names = ("P", "G", "C", "stage", "repeated s", "shared s", "time")
    names += ("repeated MiB", "shared MiB", "memory", "gradient error")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for slow, fast in zip(rows[::2], rows[1::2], strict=True):
        cells = [str(fast[name]) for name in ("P", "G", "C", "stage")]
        cells += [f"{slow['seconds']:.3f}", f"{fast['seconds']:.3f}", f"{fast['ratio_time']:.1f}x"]
        cells += [f"{slow['peak_mib']:.0f}", f"{fast['peak_mib']:.0f}"]
        cells += [f"{fast['ratio_mem']:.1f}x", f"{fast['max_rel_grad_err']:.1e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
