"""Trains one setting of the study: train.py SETTING SEED EXPORT OUT [OVERRIDE ...].

EXPORT is the cold start. The setting host_masters uses an optimizer of this folder with bfloat16
weights, which the config check refuses. The run therefore starts without the check.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tvg.config import compose
from tvg.jobs.train import train

HALF = ["model.dtype=bfloat16", "trainer.precision=bf16-mixed"]
SETTINGS = {
    "float32": [],
    "stochastic_8bit": [*HALF, "objective/optimizer=adamw_8bit_stochastic"],
    "host_masters": [
        *HALF,
        "objective/optimizer=adamw",
        "objective.optimizer._target_=host_masters.MasterAdamW",
    ],
    # Expected to learn less: bfloat16 weights, updates rounded to the nearest number.
    "nearest": [*HALF, "objective/optimizer=adamw"],
}


def main(setting: str, seed: str, export: str, out: str, *more: str) -> None:
    words = ["experiment=demo_study", "trainer=cpu", f"seed={seed}", f"model.path={export}"]
    words += [*SETTINGS[setting], f"setting={setting}", f"run_dir={out}", *more]
    train(compose("train", words).cfg)


if __name__ == "__main__":
    main(*sys.argv[1:])
