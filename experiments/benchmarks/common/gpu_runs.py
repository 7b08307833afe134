"""Trains, saves and resumes at the shapes of the released checkpoints, on GPUs (`make bench-gpu`).

Each case is one `tvg-train` command with random weights and generated videos: a few GRPO steps with
a reference, a checkpoint, and the same command with `resume=true` for more steps. The table has the
logged seconds of a step (median without the first), the peak memory that torch allocated on a GPU,
the size of the checkpoint, and the seconds of both commands, start-up included. If a command fails,
for example because memory is missing, the table has its last line.

    python experiments/benchmarks/common/gpu_runs.py [--shapes 3b 7b] [--cases NAME ...] [--steps 4]

It has not run on a GPU yet. `--shapes 5m --cases cpu` tests the same code on a CPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common.shapes import random_model, shape_config
from transformers import GenerationConfig

from tvg.model.families import FAMILIES
from tvg.model.families.tiny import TinySizes, token_id, vision_ids
from tvg.synthetic.templates import all_queries
from tvg.synthetic.tiny import VOCABULARY
from tvg.synthetic.tiny_tokenizer import train_tokenizer

RESULTS = Path(__file__).parents[1] / "results"
ONE_GPU = ("trainer=gpu", "trainer.devices=1", "strategy=auto")
CASES: dict[str, tuple[str, ...]] = {
    "single_float32": (*ONE_GPU, "model.dtype=float32"),  # computes in bfloat16 (autocast)
    "single_bfloat16_lora": (*ONE_GPU, "model/adapter=lora", "model.dtype=bfloat16"),
    "zero2_float32": ("trainer=gpu", "strategy=deepspeed_zero2", "model.dtype=float32"),
    "zero2_bfloat16": ("trainer=gpu", "strategy=deepspeed_zero2", "model.dtype=bfloat16"),
    "zero3_float32": ("trainer=gpu", "strategy=deepspeed_zero3", "model.dtype=float32"),
    "zero3_bfloat16": ("trainer=gpu", "strategy=deepspeed_zero3", "model.dtype=bfloat16"),
    "cpu": ("trainer=cpu", "strategy=auto", "model.dtype=float32", "trainer.precision=bf16-mixed"),
}
GPU_CASES = tuple(name for name in CASES if name != "cpu")
COLUMNS = (
    "shape",
    "case",
    "step_s",
    "sampling_s",
    "gpu_gib",
    "checkpoint_gib",
    "run_s",
    "resume_s",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["3b", "7b"])
    parser.add_argument("--cases", nargs="+", default=list(GPU_CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--completion-tokens", type=int, default=200)
    parser.add_argument("--frame-pixels", type=int, default=224 * 28 * 28)
    parser.add_argument(
        "--folder", type=Path, help="checkpoints, videos and runs; default: removed"
    )
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for shape in args.shapes:
            checkpoint = write_checkpoint(folder / shape, shape)
            for case in args.cases:
                rows.append(measure(folder, checkpoint, shape, case, args))
                print(json.dumps(rows[-1]), flush=True)
                if torch.cuda.is_available():
                    write(rows)
    print(table(rows))


def write_checkpoint(folder: Path, shape: str) -> Path:
    """Writes a released shape with random bfloat16 weights and a small tokenizer."""
    if (folder / "config.json").exists():
        return folder
    tokenizer = train_tokenizer(all_queries(), vocab_size=VOCABULARY)
    sizes = TinySizes(
        hidden_size=128,
        intermediate_size=128,
        num_layers=1,
        initializer_range=0.02,
        frame_side=28,
    )
    parts = FAMILIES["qwen2_5_vl"].tiny(tokenizer, sizes)
    end, pad = token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")
    config = shape_config(shape, eos_token_id=end, pad_token_id=pad, **vision_ids(tokenizer))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_model(config, device=device, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    model.save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    return folder


def measure(folder: Path, checkpoint: Path, shape: str, case: str, args: Any) -> dict[str, Any]:
    """Runs a case and resumes it; returns its row."""
    run_dir = folder / f"run_{shape}_{case}"
    row: dict[str, Any] = {"shape": shape, "case": case}
    words = command(folder, checkpoint, run_dir, case, args)
    row["run_s"], row["failure"] = run([*words, f"trainer.max_steps={args.steps}"])
    if row["failure"] is not None:
        return row
    row |= logged(run_dir, num_steps=args.steps)
    files = [file for file in (run_dir / "checkpoints").rglob("*") if file.is_file()]
    row["checkpoint_gib"] = sum(file.stat().st_size for file in files) / 2**30
    more = [*words, f"trainer.max_steps={args.steps + 2}", "resume=true"]
    row["resume_s"], row["failure"] = run(more)
    if row["failure"] is None:
        logged(run_dir, num_steps=args.steps + 2)
    return row


def command(folder: Path, checkpoint: Path, run_dir: Path, case: str, args: Any) -> list[str]:
    pixels = args.frame_pixels
    return [
        *("model=qwen2_5_vl_7b", f"model.path={checkpoint}"),
        *("data=synthetic", "data/clip=qwen", f"data.world.root={folder / 'world'}"),
        *(f"data.world.num_clips.{split}=8" for split in ("train", "val", "test")),
        *(f"data.clip.sampling.{key}_pixels={pixels}" for key in ("min", "max")),
        *("data.batch_size=2", "data.num_workers=0", "prompt=short", "reward=[iou]"),
        *(f"objective.group_size={args.group_size}", "objective.loss.kl_coef=0.04"),
        f"rollout.max_new_tokens={args.completion_tokens}",
        f"callbacks.checkpoint.every_n_train_steps={args.steps}",
        *("trainer.limit_val_batches=0", "logger=[csv]", f"run_dir={run_dir}"),
        *CASES[case],
    ]


def run(words: list[str]) -> tuple[float, str | None]:
    """Runs tvg-train; returns its seconds, and the last line of its errors if it failed."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tvg.cli.train", *words], capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines() or ["no message"]
    seconds = time.perf_counter() - begin
    return seconds, None if done.returncode == 0 else " / ".join(lines[-3:])[:300]


def logged(run_dir: Path, *, num_steps: int) -> dict[str, Any]:
    """Returns the logged figures of a run; checks that it made `num_steps` steps."""
    values: dict[str, list[float]] = {}
    for file in sorted(run_dir.rglob("metrics.csv")):
        with file.open() as opened:
            for line in csv.DictReader(opened):
                for name, text in line.items():
                    if text:
                        values.setdefault(name, []).append(float(text))
    losses = values["train/loss"]
    assert len(losses) == num_steps, losses
    assert all(map(math.isfinite, losses)), losses
    peaks = values.get("perf/gpu_memory_gib")
    return {
        "step_s": statistics.median(values["perf/step_s"][1:]),
        "sampling_s": statistics.median(values["perf/sampling_s"][1:]),
        "gpu_gib": max(peaks) if peaks else None,
    }


def write(rows: list[dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    head = (
        f"# GRPO runs on {torch.cuda.device_count()} x {torch.cuda.get_device_name()}, "
        f"{date.today()}\n\n`make bench-gpu`, torch {torch.__version__}\n\n"
    )
    (RESULTS / "grpo_runs_gpu.md").write_text(head + table(rows) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    names = (*COLUMNS, "failure")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        values = [row.get(name) for name in names]
        cells = [f"{v:.2f}" if isinstance(v, float) else "-" if v is None else v for v in values]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
