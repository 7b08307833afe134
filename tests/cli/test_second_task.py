"""Tests of a user's own task, one Python file and one YAML: training, validation, evaluation."""

from __future__ import annotations

import csv
import json
import sys

import pytest

import tvg.jobs.train
from tvg.jobs.train import train

TASK = '''
"""Asks in which half of the clip an event begins."""

from dataclasses import replace

from tvg.core.parsing import parse_answer
from tvg.task.predictions import Prediction, known_scores


class HalvesTask:
    prefill = frame_times = None
    main_metric = "accuracy"
    validation_metrics = ("accuracy",)

    def __init__(self, *, question):
        self.question = question

    def asked_query(self, example):
        return example.query.strip()

    def messages(self, example):
        text = {"type": "text", "text": f"{self.asked_query(example)} {self.question}"}
        return [{"role": "user", "content": [{"type": "video"}, text]}]

    def right(self, example):
        if example.segment is None:
            return None
        return "first" if example.segment.start_s < example.duration_s / 2 else "second"

    def target(self, example):
        return f"<answer>{self.right(example)}</answer>"

    def typical_target(self):
        return "<answer>first</answer>"

    def parse(self, text):  # the prefix shows that nothing else parses the completions
        answer = parse_answer(text)
        return replace(answer, answer=f"half: {answer.answer}")

    def is_parsed(self, answer):
        return answer.answer in ("half: first", "half: second")

    def has_exact_format(self, text):
        return text in ("<answer>first</answer>", "<answer>second</answer>")

    def predict(self, example, text, *, duration_s):
        answer, expected = self.parse(text), self.right(example)
        return Prediction(
            qid=example.qid,
            video=example.video,
            query=example.query,
            answer=answer.answer,
            expected=expected,
            score=None if expected is None else float(answer.answer == f"half: {expected}"),
            text=text,
            duration_s=duration_s,
            is_parsed=self.is_parsed(answer),
            is_exact=self.has_exact_format(text),
        )

    def rate(self, example, prediction):
        return replace(example, difficulty=100 * prediction.score)

    def metrics(self, predictions, *, seed=0, strict=False):
        scores = known_scores(predictions)
        return {"n": len(scores), "accuracy": sum(scores) / len(scores)}

    def columns(self, example, answer):
        return {"truth": self.right(example), "answer": answer.answer}


def length(*, texts):
    return [len(text) / 100 for text in texts]
'''
YAML = """
_target_: my_task.HalvesTask
question: Does this begin in the first or in the second half?
"""
SMALL = [
    "prompt=halves",
    "trainer=cpu",
    "trainer.max_steps=1",
    "trainer.val_check_interval=1",
    "trainer.enable_progress_bar=false",
    "data.batch_size=2",
    "data.limit_val=2",
    "rollout.max_new_tokens=4",
    "logger=csv",
]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a user's files and makes them importable, like PYTHONPATH=. does."""
    (tmp_path / "my_task.py").write_text(TASK)
    (tmp_path / "my_conf" / "prompt").mkdir(parents=True)
    (tmp_path / "my_conf" / "prompt" / "halves.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ["--config-dir=my_conf"]
    sys.modules.pop("my_task", None)


@pytest.fixture
def results(monkeypatch) -> list[float | None]:
    """Collects what the trainings of a test return, as an optimising sweeper does."""
    found = []
    monkeypatch.setattr(tvg.jobs.train, "train", lambda cfg: found.append(train(cfg)))
    return found


def test_own_task_trains_and_is_evaluated(command, world, own, results, tiny_checkpoint, tmp_path):
    def run(name, *words):
        folder = tmp_path / name.replace("train", words[0].partition("=")[2])
        done = command(name, *own, *world, *words, f"run_dir={folder}")
        assert done.code == 0, done.err
        return folder

    model = f"model.path={tiny_checkpoint}"
    taught = run("train", "objective=sft", "reward=[]", *SMALL, model)
    reward = "+reward.length={weight:1.0,reward:{_target_:my_task.length,_partial_:true}}"
    reinforced = run(
        "train",
        "objective=grpo",
        "reward=[]",
        reward,
        *SMALL,
        "objective.group_size=2",
        f"model.path={taught / 'export'}",
    )
    rows = [json.loads(line) for line in (reinforced / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert {row["truth"] for row in rows} <= {"first", "second"}
    assert all(row["answer"].startswith("half: ") for row in rows)
    for folder, result in zip((taught, reinforced), results, strict=True):
        with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
            logged = [row["val/accuracy"] for row in csv.DictReader(file)]
        assert result == float([value for value in logged if value][-1])
    scored = run(
        "evaluate",
        "prompt=halves",
        f"model.path={reinforced / 'export'}",
        "rollout.max_new_tokens=4",
        "logger=[]",
        "split=train",
        f"evaluate.write_difficulty={tmp_path / 'rated.jsonl'}",
    )
    metrics = json.loads((scored / "metrics.json").read_text())
    lines = (scored / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert metrics["accuracy"] == sum(p["score"] for p in predictions) / len(predictions)
    assert {p["expected"] for p in predictions} <= {"first", "second"}
    rated = [json.loads(line) for line in (tmp_path / "rated.jsonl").read_text().splitlines()]
    assert [row["difficulty"] for row in rated] == [100 * p["score"] for p in predictions]
