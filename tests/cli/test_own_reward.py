"""Tests of a user's own reward: a function in the working directory, and a YAML file."""

from __future__ import annotations

import json
import sys

import pytest

SMALL = [
    "prompt=short",
    "trainer=cpu",
    "trainer.max_steps=1",
    "trainer.limit_val_batches=0",
    "trainer.enable_progress_bar=false",
    "data.batch_size=1",
    "objective.micro_batch_size=1",
    "objective.group_size=2",
    "objective.preflight=null",
    "rollout.max_new_tokens=4",
    "logger=[]",
    "callbacks=[checkpoint,rollout_table,reward_health]",
    "reward.format.reward.think=false",
]

OWN = '''
def center(*, answers, truths):
    """1 where the middle of the answer lies inside the true segment."""
    middles = [a.segment and sum(a.segment) / 2 for a in answers]
    return [float(m is not None and t.start_s <= m <= t.end_s) for m, t in zip(middles, truths)]

def short(*, num_tokens, is_finished, examples, group_size, max_tokens):
    assert len(num_tokens) == len(is_finished) == len(examples) == group_size == 2
    assert examples[0] is examples[1]
    return [n / max_tokens for n in num_tokens]

def broken(*, texts):
    return [float("nan") for _ in texts]
'''
YAML = """
{name}:
  weight: 0.5
  reward:
    _target_: my_rewards.{name}
    _partial_: true
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a user's files and makes them importable, like PYTHONPATH=. does."""
    (tmp_path / "my_rewards.py").write_text(OWN)
    (tmp_path / "my_conf" / "reward").mkdir(parents=True)
    for name in ("center", "broken"):
        (tmp_path / "my_conf" / "reward" / f"{name}.yaml").write_text(YAML.format(name=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ["--config-dir=my_conf"]
    sys.modules.pop("my_rewards", None)


def test_own_rewards_work_with_shipped_rewards(command, world, own, tiny_checkpoint, tmp_path):
    run = tmp_path / "run"
    short = "{weight:1.0,reward:{_target_:my_rewards.short,_partial_:true,max_tokens:4}}"
    done = command(
        "train",
        *own,
        *world,
        *SMALL,
        f"model.path={tiny_checkpoint}",
        "reward=[format,iou,overlong,diversity,center]",
        f"+reward.short={short}",
        "reward.center.weight=0.3",
        f"run_dir={run}",
    )
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        parts = {key.removeprefix("reward_"): row[key] for key in row if key.startswith("reward_")}
        assert list(parts) == ["format", "iou", "overlong", "diversity", "center", "short"]
        paid = parts["format"] + parts["iou"] + parts["overlong"] + parts["short"]
        assert row["reward"] == pytest.approx(paid + 0.3 * parts["center"], abs=1e-6)
        assert parts["short"] == row["num_tokens"] / 4
        assert row["finished"] or row["num_tokens"] == 4
    # `reward_health` reports that the untrained model writes no valid answers.
    health = (run / "reward_health.txt").read_text()
    assert "iou: 0 in all of the last 2 completions" in health
    assert "rollout.max_new_tokens=4: raise it" in health


def test_error_of_own_reward_is_one_line(command, world, own, tiny_checkpoint, tmp_path):
    def error(name, *words):
        places = [f"model.path={tiny_checkpoint}", f"run_dir={tmp_path / name}"]
        return command("train", *own, *world, *SMALL, *places, *words).error

    message = error("nan", "reward=[format,iou,broken]")
    assert message.startswith("reward 'broken' must be a finite number: got nan for completion 0 (")
    # An argument without default that is missing in the config.
    needs = "+reward.short={weight:1.0,reward:{_target_:my_rewards.short,_partial_:true}}"
    assert "'short' needs the argument 'max_tokens'" in error("needs", needs)
    early = "+reward.center={weight:1.0,reward:{_target_:my_rewards.center}}"
    assert "reward.center.reward: my_rewards.center is a function" in error("early", early)
