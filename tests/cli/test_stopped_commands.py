"""Tests that SIGTERM and SIGINT stop real commands with advice and without leftover files."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from helpers import real_commands as real

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def words(tiny_world, tiny_checkpoint):
    checkpoint = f"model.path={tiny_checkpoint}"
    videos = f"data.video_dir={tiny_world / 'videos'}"
    one_file = ["data=custom", f"data.annotation_file={tiny_world / 'test.json'}", videos]
    stage = ["trainer.max_steps=2", "trainer.val_check_interval=2", "data.batch_size=2"]
    stage += ["objective.schedule.warmup_steps=1", "objective.micro_batch_size=2"]
    shared = ["data=synthetic_demo", "data.world.root=world", "logger=[]"]
    shared += ["data.world.num_clips={train:34,val:2,test:2}", "rollout.max_new_tokens=4"]
    return {
        "prepare": [
            *one_file,
            "data.cache.folder=cache",
            "prepare.num_workers=2",
            "prepare.report=report.json",
            "prepare.timeout_s=null",  # with a limit, few clips would start no workers
            "run_dir=run",
        ],
        "evaluate": [
            *one_file,
            "data/cache=none",
            "data.num_workers=1",
            "data.eval_batch_size=1",
            checkpoint,
            "prompt=short",
            "rollout.max_new_tokens=2",
            "logger=[]",
            "run_dir=run",
        ],
        "predict": [
            checkpoint,
            f"video={next(iter(sorted((tiny_world / 'videos').glob('*.mp4'))))}",
            "query=the red square moves",
            "prompt=short",
            "rollout.max_new_tokens=2",
            "picture=answer.png",
            "run_dir=run",
        ],
        "train": [
            "experiment=demo",
            listed("job.shared", shared),
            listed("job.sft", ["experiment=demo_sft", *stage]),
            listed("job.grpo", ["experiment=demo_grpo", *stage, "objective.group_size=2"]),
            "run_dir=run",
        ],
    }


def listed(key: str, words: list[str]) -> str:
    return f"{key}=[{','.join(json.dumps(word) for word in words)}]"


PLACES = [  # pauses in workers and in the main process
    ("prepare", "tvg.preparation.pool:_PoolRun._take:2", signal.SIGTERM),
    ("prepare", "tvg.preparation.pool:_PoolRun._take:2", signal.SIGINT),
    ("evaluate", "tvg.training.evaluation:predict_batch:2", signal.SIGTERM),
    ("evaluate", "tvg.training.evaluation:predict_batch:2", signal.SIGINT),
    ("predict", "tvg.jobs.predict:predict_batch:1", signal.SIGTERM),
    ("predict", "tvg.jobs.predict:draw_filmstrip:1", signal.SIGINT),
]


def stopped(name: str, words: list[str], folder: Path, pause: str, number: int) -> str:
    """Starts a command, signals its process group at its pause, and returns its stderr."""
    process = real.start(name, words, folder, pause)
    try:
        real.run(process)
        real.until_paused(process, folder)
        below = real.descendants(process.pid)
        os.killpg(process.pid, number)
        (folder / "go_on").touch()
        code, _, err = real.finish(process)
        assert code == 128 + number, err
        assert "Traceback" not in err
        assert real.are_gone(below)
        lines = err.rstrip().splitlines()
        message_line = lines.index(f"tvg-{name}: stopped by {signal.Signals(number).name}")
        assert lines[message_line + 1 :], "expected advice after the message"
        assert not real.leftovers(folder)
        return err
    finally:
        real.kill(process)


@pytest.mark.parametrize(("name", "pause", "number"), PLACES)
def test_stopped_command_can_be_run_again(words, tmp_path, name, pause, number):
    err = stopped(name, words[name], tmp_path / "w", pause, number)
    assert len(err.rstrip().splitlines()[-1]) < 100
    results = {"prepare": "report.json", "evaluate": "run/metrics.json", "predict": "answer.json"}
    assert not (tmp_path / "w" / results[name]).exists()
    real.completes(name, words[name], tmp_path / "w")
    assert (tmp_path / "w" / results[name]).is_file()


@pytest.mark.parametrize(
    ("pause", "number"),
    [
        ("tvg.synthetic.write:script_clip:20", signal.SIGTERM),
        ("lightning.pytorch:Trainer.fit:1", signal.SIGINT),
    ],
)
def test_stopped_demo_can_be_continued(words, tmp_path, pause, number):
    err = stopped("train", words["train"], tmp_path / "w", pause, number)
    assert err.rstrip().endswith("run the same command to continue")
    real.completes("train", words["train"], tmp_path / "w")
    assert (tmp_path / "w" / "run" / "results.json").is_file()
