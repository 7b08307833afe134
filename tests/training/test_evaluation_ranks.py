"""Tests that several processes share an evaluation with the predictions of one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tvg.training.evaluation_ranks import EvaluationRank, evaluation_rank, in_order


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_done", [0, 1])
def test_shares_contain_every_batch_once(world_size, num_done):
    batches = list(range(7))
    ranks = [EvaluationRank(rank=r, world_size=world_size) for r in range(world_size)]
    of_ranks = [batches[rank.share(0)][:num_done] + batches[rank.share(num_done)] for rank in ranks]
    assert in_order(of_ranks) == batches


def test_one_process_communicates_with_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with evaluation_rank() as rank, rank.first_alone():
        assert rank == EvaluationRank()
        assert rank.gather([[1], []]) == [[1], []]
        rank.wait_for_all()
        assert rank.partial_file() == "predictions.partial.jsonl"
    assert not torch.distributed.is_initialized()


def test_every_process_uses_its_own_gpu():
    second = EvaluationRank(rank=9, world_size=16, local_rank=1)
    assert second.device(torch.device("cuda")) == torch.device("cuda:1")
    assert second.device(torch.device("cuda:0")) == torch.device("cuda:0")
    assert second.device(torch.device("cpu")) == torch.device("cpu")
    assert EvaluationRank().device(torch.device("cuda")) == torch.device("cuda")


def evaluate(run_dir: Path, checkpoint: Path, world: Path, *more: str, num: int) -> list[str]:
    """Runs tvg-evaluate in `num` processes; returns the lines of its predictions."""
    start = ["-m", "torch.distributed.run", f"--nproc-per-node={num}", "--standalone"]
    done = subprocess.run(
        [
            sys.executable,
            *(start if num > 1 else []),
            *("-m", "tvg.cli.evaluate", "data=custom", "data/cache=none", "data.num_workers=0"),
            f"data.annotation_file={world / 'train.json'}",
            f"data.video_dir={world / 'videos'}",
            "data.eval_batch_size=2",
            f"model.path={checkpoint}",
            "rollout.max_new_tokens=4",
            "logger=[]",
            f"run_dir={run_dir}",
            *more,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(run_dir.glob("*partial*"))
    assert json.loads((run_dir / "metrics.json").read_text())["n"] == 6
    return (run_dir / "predictions.jsonl").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_write_the_predictions_of_one(tiny_world, tiny_checkpoint, tmp_path):
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    alone = evaluate(tmp_path / "one", checkpoint, tiny_world, "greedy=false", num=1)
    shared = evaluate(tmp_path / "two", checkpoint, tiny_world, "greedy=false", num=2)
    assert len({json.loads(line)["text"] for line in alone}) > 1
    assert shared == alone
