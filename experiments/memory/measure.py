"""Compares the estimate with the memory of small runs on the CPU, one process per run and rank.

python experiments/memory/measure.py OUT [CASE ...]

Each run makes two GRPO steps with a reference. Its weights take 0.3 GB, so that they dominate. The
peak is the largest anonymous memory of the first rank (RssAnon and RssShmem), minus the memory
after all imports. It does not count files that are mapped, such as libraries and the checkpoint.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOLERANCE = 0.15
MODEL = {"hidden_size": 1024, "intermediate_size": 4096, "num_layers": 4, "initializer_range": 0.02}
COMMON = [
    "data=synthetic_demo",
    "prompt=short",
    "reward=[iou]",
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.limit_val_batches=0",
    "trainer.enable_progress_bar=false",
    "data.batch_size=2",
    "data.eval_batch_size=1",
    "data/cache=none",
    "objective.group_size=4",
    "objective.loss.kl_coef=0.1",
    "objective.preflight=null",
    "objective/optimizer=adamw_fused",
    "rollout.max_new_tokens=8",
    "callbacks=[]",
    "logger=[]",
]
ZERO = "strategy._target_=cpu_zero.CPUDeepSpeedStrategy"
HALF = ["trainer.precision=bf16-mixed"]
TWO = ["trainer.devices=2"]
CASES: dict[str, list[str]] = {
    "single": [],
    "single, no reference": ["objective.loss.kl_coef=0"],
    "ddp": ["strategy=ddp", *TWO],
    "fsdp2": ["strategy=fsdp2", *TWO],
    "deepspeed_zero1": ["strategy=deepspeed_zero1", ZERO, *TWO, *HALF],
    "deepspeed_zero2": ["strategy=deepspeed_zero2", ZERO, *TWO, *HALF],
    "deepspeed_zero2_offload": [
        *["strategy=deepspeed_zero2_offload", ZERO, *TWO, *HALF],
        "objective/optimizer=adamw_cpu",
    ],
    "deepspeed_zero3": ["strategy=deepspeed_zero3", ZERO, *TWO, *HALF],
}


class Peak:
    """Samples the memory of this process in a thread."""

    def __init__(self) -> None:
        self.largest = 0
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self.largest = max(self.largest, anonymous_bytes())
            time.sleep(0.002)

    def take(self) -> int:
        found, self.largest = self.largest, 0
        return found


def anonymous_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))


def run(words: list[str], out: Path) -> None:
    """Trains one case in this process, and writes the memory of the first rank."""
    sys.path.insert(0, str(HERE))
    import torch  # noqa: F401
    from lightning.pytorch import seed_everything

    from tvg.build import build_components, build_module, build_trainer
    from tvg.config import compose
    from tvg.estimate.from_config import make_job
    from tvg.estimate.lines import host_total, total, worst_phase
    from tvg.estimate.memory import estimate
    from tvg.estimate.workload import training_list
    from tvg.training.quiet_logs import quiet_libraries

    quiet_libraries()
    cfg = compose("train", words).cfg
    job = make_job(cfg, clip_s=training_list(cfg).clip_s)
    lines = estimate(job)
    seed_everything(0, verbose=False)
    trainer = build_trainer(cfg)
    before, peak = anonymous_bytes(), Peak()
    parts = build_components(cfg, split="train")
    module = build_module(cfg, parts)
    loading = peak.take() - before
    trainer.fit(module, datamodule=parts.data)
    training = peak.take() - before
    if trainer.is_global_zero:
        away = sum(line.host for line in lines if line.phase != "loading")
        found = {
            "parameters": job.params.total,
            "phase": worst_phase(lines),
            "loading": loading,
            "estimated_loading": host_total([line for line in lines if line.phase == "loading"]),
            "training": training,
            "estimated_training": total(lines) + away,
        }
        out.write_text(json.dumps(found))


def measure(name: str, folder: Path, model: Path) -> dict[str, Any] | None:
    option = next((w for w in CASES[name] if w.startswith("strategy=")), "strategy=auto")
    conf = HERE.parents[1] / "conf" / "strategy" / f"{option.partition('=')[2]}.yaml"
    if not conf.exists():
        print(f"{name}: left out, there is no {conf.name}")
        return None
    out = folder / f"{name.replace(' ', '_')}.json"
    words = [*COMMON, *CASES[name], f"model.path={model}", f"run_dir={folder}/run", "name=memory"]
    command = [sys.executable, __file__, "--run", str(out), *words]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        # Freed memory is returned at once, so that resident memory is what is in use.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        print(f"{name}: failed\n{done.stderr[-2000:]}")
        return None
    return {"case": name, **json.loads(out.read_text())}


def make_model(folder: Path) -> Path:
    from functools import partial

    from tvg.synthetic.templates import all_queries
    from tvg.synthetic.tiny import write_tiny_checkpoint

    place = folder / "model"
    if not (place / "config.json").exists():
        write = partial(write_tiny_checkpoint, family="qwen2_5_vl", corpus=all_queries(), seed=0)
        write(folder=place, **MODEL)
    return place


def table(rows: list[dict[str, Any]]) -> str:
    heads = ["run", "phase", "estimated MiB", "measured MiB", "estimated / measured"]
    heads += ["loading: estimated", "measured"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        mib = {key: row[key] / 2**20 for key in row if key not in ("case", "phase")}
        ratio = row["estimated_training"] / row["training"]
        cells = [row["case"], row["phase"], f"{mib['estimated_training']:,.0f}"]
        cells += [f"{mib['training']:,.0f}", f"{ratio:.2f}"]
        cells += [f"{mib['estimated_loading']:,.0f}", f"{mib['loading']:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(out: str, *names: str) -> None:
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(folder)
    rows = [row for name in names or CASES if (row := measure(name, folder, model))]
    (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}")
    print(table(rows))
    off = [r["case"] for r in rows if abs(r["estimated_training"] / r["training"] - 1) > TOLERANCE]
    print(f"outside of {TOLERANCE:.0%}: {', '.join(off) or 'none'}")


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        run(sys.argv[3:], Path(sys.argv[2]))
    else:
        main(*sys.argv[1:])
