"""Tests of making and scoring predictions, and of resuming an interrupted evaluation."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_policy import make_parts, make_rollout, make_task

from tvg.data.dataset import LeftOut
from tvg.task.grounding import segment_metrics
from tvg.task.predictions import Prediction, known_scores
from tvg.training.evaluation import (
    PartialPredictions,
    choose_device,
    predict_all,
    predict_batch,
    with_difficulty,
)
from tvg.types import GroundingExample, Segment

FOUND = Prediction(
    qid="v:0",
    video="v",
    query="who “opens” the\ndoor \u2028 一",
    segment=Segment(2.0, 9.5),
    truth=Segment(1.0, 7.5),
    score=0.64,
    text="2.0 to 9.5 \ud800",
    duration_s=20.0,
    is_parsed=True,
)
LOST = replace(FOUND, qid="v:1", segment=None, score=0.0, text="?", is_parsed=False)
BLIND = replace(FOUND, qid="v:2", truth=None, score=None)
BATCHES = [[FOUND, LOST], [BLIND, replace(FOUND, qid="v:3")], [replace(LOST, qid="v:4")]]


def flat(batches):
    return [prediction for batch in batches for prediction in batch]


def test_partial_predictions_are_read_back(tmp_path):
    path = tmp_path / "partial.jsonl"
    partial = PartialPredictions(path, "f")
    assert partial.done == []
    for number, batch in enumerate(BATCHES, start=1):
        partial.extend(iter(batch))
        assert partial.done == PartialPredictions(path, "f").done == flat(BATCHES[:number])
    again = PartialPredictions(path, "f").done
    assert isinstance(again[0].segment, Segment)
    assert isinstance(again[0].truth, Segment)
    partial.remove()
    partial.remove()
    assert not path.exists()


def test_truncated_file_is_continued_after_its_last_complete_batch(tmp_path):
    whole_path = tmp_path / "whole.jsonl"
    whole = PartialPredictions(whole_path, "f")
    ends = []
    for batch in BATCHES:
        whole.extend(batch)
        ends.append(whole_path.stat().st_size)
    data = whole_path.read_bytes()
    path = tmp_path / "cut.jsonl"
    for size in {*range(0, len(data), 7), *ends, *(end - 1 for end in ends)}:
        path.write_bytes(data[:size])
        partial = PartialPredictions(path, "f")
        num_whole = sum(end <= size for end in ends)
        assert partial.done == flat(BATCHES[:num_whole]), size
        for batch in BATCHES[num_whole:]:
            partial.extend(batch)
        assert path.read_bytes() == data, size


def test_predictions_with_another_fingerprint_are_ignored(tmp_path):
    path = tmp_path / "partial.jsonl"
    PartialPredictions(path, "old").extend(BATCHES[0])
    partial = PartialPredictions(path, "new")
    assert partial.done == []
    partial.extend(BATCHES[1])
    assert PartialPredictions(path, "new").done == BATCHES[1]
    assert PartialPredictions(path, "old").done == []


@pytest.mark.parametrize("text", ["", "\n", "no JSON\n", "[]\n", '{"fingerprint": "f"'])
def test_file_without_a_valid_header_is_restarted(tmp_path, text):
    path = tmp_path / "partial.jsonl"
    path.write_text(text)
    partial = PartialPredictions(path, "f")
    assert partial.done == []
    partial.extend(BATCHES[0])
    assert PartialPredictions(path, "f").done == BATCHES[0]


def test_prediction_without_a_truth_cannot_be_scored():
    assert known_scores([FOUND, LOST]) == [0.64, 0.0]
    with pytest.raises(ValueError, match=r"^v:2: its truth is not known"):
        known_scores([FOUND, BLIND])


class Answers:
    """Sampler that returns fixed texts."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def generate(self, prompts, *, group_size, seed):
        assert group_size == 1
        return SimpleNamespace(texts=self.texts)


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world)


def test_answers_are_parsed_and_scored(parts):
    prompts = parts.batch(4)
    truths = [Segment(2.0, 6.0), Segment(2.0, 6.0), Segment(2.0, 6.0), None]
    examples = [replace(e, segment=t) for e, t in zip(prompts.examples, truths, strict=True)]
    said = ["4.0 to 10.0", "6.0 to 2.0", "nothing", "<answer>1.0 to 2.0</answer>"]
    said[:2] = [f"<answer>{text}</answer>" for text in said[:2]]
    predictions = predict_batch(
        task=parts.task,
        rollout=Answers(*said),
        prompts=replace(prompts, examples=examples),
        seed=0,
    )
    assert predictions[0].segment == (4.0, 10.0)
    assert predictions[0].score == pytest.approx(2 / 8)
    assert predictions[1].score == 0.0
    assert (predictions[2].segment, predictions[2].score, predictions[2].is_parsed) == (
        None,
        0.0,
        False,
    )
    assert (predictions[3].truth, predictions[3].score) == (None, None)
    assert predictions[3].is_parsed
    assert [p.text for p in predictions] == said
    assert [p.duration_s for p in predictions] == prompts.duration_s.tolist()
    assert [p.qid for p in predictions] == [e.qid for e in examples]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("torn", [False, True])
def test_resumed_evaluation_equals_an_uninterrupted_one(parts, tmp_path, temperature, torn):
    batches = [parts.batch(5).rows(start, start + 2) for start in (0, 2, 4)]
    path = tmp_path / "partial.jsonl"

    def run(*, stop_after: float = float("inf")) -> list[Prediction]:
        counts: list[int] = []

        def on_batch(num: int) -> None:
            counts.append(num)
            if len(counts) >= stop_after:
                raise KilledError

        partial = PartialPredictions(path, "f")
        done = len(partial.done)
        assert done % 2 == 0
        rollout = make_rollout(max_new_tokens=4, temperature=temperature)
        rollout.setup(policy=parts.policy, tokenizer=parts.tokenizer)
        predictions = predict_all(
            task=parts.task,
            rollout=rollout,
            batches=batches[done // 2 :],
            seed=3,
            device=torch.device("cpu"),
            partial=partial,
            on_batch=on_batch,
        )
        assert sum(counts) == 5 - done
        partial.remove()
        return predictions

    whole = run()
    assert len({p.text for p in whole}) > 1
    with pytest.raises(KilledError):
        run(stop_after=2)
    if torn:  # as after a crash while the second batch was written
        path.write_bytes(path.read_bytes()[:-40])
    kept = len(PartialPredictions(path, "f").done)
    assert kept == (2 if torn else 4)
    assert run() == whole


def test_unknown_devices_are_refused():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99", "cpu:x"):
        with pytest.raises(ValueError, match=rf"^device: expected .* got '{name}'"):
            choose_device(name)


def test_each_line_contains_one_batch(tmp_path):
    path = tmp_path / "partial.jsonl"
    partial = PartialPredictions(path, "f")
    for batch in BATCHES:
        partial.extend(batch)
    lines = path.read_text().splitlines()
    assert [len(json.loads(line)) for line in lines[1:]] == [2, 2, 1]


def test_batch_without_predictions_counts_as_done(tmp_path):
    path = tmp_path / "partial.jsonl"
    partial = PartialPredictions(path, "f")
    for batch in ([], [], BATCHES[0], []):
        partial.extend(batch)
    again = PartialPredictions(path, "f")
    assert partial.num_batches == again.num_batches == 4
    assert partial.done == again.done == BATCHES[0]


def test_an_empty_batch_has_no_predictions(parts):
    prompts = parts.collator([LeftOut("v.mp4: is broken")])
    rollout = make_rollout()
    assert predict_batch(task=parts.task, rollout=rollout, prompts=prompts, seed=0) == []


def test_difficulty_can_be_rated_by_the_first_two_numbers():
    examples = [
        GroundingExample(
            qid=qid,
            video="v",
            video_path=None,
            query="q",
            segment=FOUND.truth,
            duration_s=20.0,
        )
        for qid in ("v:0", "v:1", "v:9")
    ]
    lost = replace(LOST, text="at 1.0, then at 7.5")
    for rates_numbers, difficulty, segment in (
        (False, 0.0, None),
        (True, 100.0, Segment(1.0, 7.5)),
    ):
        task = make_task(rate_any_numbers=rates_numbers)
        rated = with_difficulty(examples, [FOUND, lost], task)
        # First: intersection 5.5 s, union 8.5 s. Second: no range. Third: no prediction.
        assert rated[0].difficulty == pytest.approx(100 * 5.5 / 8.5)
        assert (rated[1].difficulty, rated[1].prediction) == (difficulty, segment)
        assert (rated[2].difficulty, rated[2].prediction) == (None, None)


def test_metrics_include_the_share_of_exact_answers():
    exact, not_exact = replace(FOUND, is_exact=True), replace(FOUND, is_exact=False)
    assert segment_metrics([exact, exact, not_exact, exact])["exact_format_rate"] == 0.75
    assert "exact_format_rate" not in segment_metrics([exact, FOUND])  # unknown for one prediction
    tie = replace(FOUND, segment=Segment(3.3, 6.8), truth=Segment(3.3, 8.3))
    assert segment_metrics([tie])["r1_iou_0.7"] == 1.0  # 3.5 / 5.0 exactly
    assert segment_metrics([tie], strict=True)["r1_iou_0.7"] == 0.0
