"""A run with bfloat16 weights and stochastic rounding resumes bit for bit. Needs torchao."""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from tvg.config import compose
from tvg.jobs.train import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao"),
]


def run(folder, checkpoint, world, steps, *more):
    words = [
        f"run_dir={folder}",
        "name=run",
        f"model.path={checkpoint}",
        "model.dtype=bfloat16",
        "data.world=null",
        *[f"data.{split}_file={world}/{split}.json" for split in ("train", "val", "test")],
        f"data.video_dir={world}/videos",
        "data.batch_size=2",
        "prompt=short",
        "objective/optimizer=adamw_8bit_stochastic",
        "objective.optimizer.lr=1e-4",
        "objective.schedule.name=constant",
        "rollout.max_new_tokens=4",
        "objective=sft",
        "reward=[]",
        "trainer=cpu",
        "trainer.precision=bf16-mixed",
        "trainer.limit_val_batches=0",
        f"trainer.max_steps={steps}",
        "callbacks=[checkpoint]",
        "logger=[]",
    ]
    train(compose("train", [*words, *more]).cfg)
    return load_file(folder / "export" / "model.safetensors")


def test_resumed_run_rounds_like_an_uninterrupted_one(tiny_checkpoint, tiny_world, tmp_path):
    straight = run(tmp_path / "straight", tiny_checkpoint, tiny_world, 4)
    run(tmp_path / "stopped", tiny_checkpoint, tiny_world, 2)
    resumed = run(tmp_path / "stopped", tiny_checkpoint, tiny_world, 4, "resume=true")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert {value.dtype for value in straight.values()} == {torch.bfloat16}
    start = load_file(tiny_checkpoint / "model.safetensors")
    assert any(not torch.equal(straight[n], start[n].bfloat16()) for n in straight if n in start)
