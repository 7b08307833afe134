"""Tests of the tables of completions in `rollouts.jsonl`, MLflow and TensorBoard."""

import json
from pathlib import Path

import pytest
from helpers.tiny_policy import with_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tvg.callbacks.rollout_table import RolloutTable, plain, table_columns
from tvg.tracking.mlflow_logger import make_mlflow_logger
from tvg.tracking.sinks import markdown_table


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_fifth_step_and_the_first_are_kept(finished_run):
    rows = read(finished_run.run_dir / "rollouts.jsonl")
    assert [row["step"] for row in rows] == [1] * 3 + [5] * 3 + [10] * 3
    assert rows[1] == {
        "step": 1,
        "qid": "v:1",
        "query": "who <opens> | the $door",
        "truth": [1.0, 7.5],
        "segment": [2.0, 9.44],
        "rewards": {"iou": 0.5, "format": None},
        "total": 1.5,
        "text": "<answer>2.0 to\n9.44</answer>?",
    }


def test_mlflow_has_one_table_per_recorded_step(finished_run):
    files = sorted(path.name for path in (finished_run.artifacts / "rollouts").iterdir())
    assert files == [f"step_{step:08d}.json" for step in (1, 5, 10)]
    # Read the table as the dashboard and MLflow's client do.
    experiment = finished_run.client.get_run(finished_run.run_id).info.experiment_id
    table = finished_run.client.load_table(experiment, "rollouts/step_00000005.json")
    names = "step qid query truth segment rewards/iou rewards/format total text"
    assert list(table.columns) == names.split()
    assert table["segment"].tolist()[1:] == ["2.0 - 9.4"] * 2
    assert table["total"].tolist() == [0.5, 1.5, 2.5]
    tags = finished_run.client.get_run(finished_run.run_id).data.tags
    assert "rollouts/step_00000010.json" in tags["mlflow.loggedArtifacts"]


def test_tensorboard_has_the_tables_as_text(finished_run):
    events = EventAccumulator(str(finished_run.run_dir / "tb"))
    events.Reload()
    texts = events.Tensors("rollouts/text_summary")
    assert [event.step for event in texts] == [1, 5, 10]
    assert b"&lt;answer>2.0 to 9.44" in texts[0].tensor_proto.string_val[0]


def test_a_resumed_run_drops_rows_of_repeated_steps(fit, tiny_grpo, tmp_path):
    path = tmp_path / "rollouts.jsonl"
    fit(tiny_grpo(), callbacks=[RolloutTable(run_dir=tmp_path, every_n_steps=1, max_rows=1)])
    trainer = fit(tiny_grpo(), max_steps=3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    with path.open("a") as file:
        file.write('{"step": 7, "qu')  # killed while writing
    table = RolloutTable(run_dir=tmp_path, every_n_steps=2, max_rows=1)
    fit(tiny_grpo(), callbacks=[table], max_epochs=2, resume=tmp_path / "three.ckpt")
    assert [row["step"] for row in read(path)] == [1, 2, 3, 4, 6, 8]


def test_a_step_logged_again_replaces_its_table(store, fit, tiny_grpo, tmp_path):
    extras = with_rows([{"query": "again", "total": None}])
    table = RolloutTable(run_dir=tmp_path, every_n_steps=5, max_rows=3)
    for _ in range(2):
        logger = make_mlflow_logger(
            tracking_uri=store, experiment_name="again", run_name=None, run_dir=tmp_path
        )
        fit(tiny_grpo(extras=extras), callbacks=[table], logger=logger)
    found = logger.experiment.load_table(logger.experiment_id, "rollouts/step_00000005.json")
    assert found["query"].tolist() == ["again"]
    assert found["step"].tolist() == [5]


@pytest.mark.parametrize("extras", [{}, with_rows(None), with_rows([])])
def test_steps_without_rows_leave_no_file(fit, tiny_grpo, tmp_path, extras):
    table = RolloutTable(run_dir=tmp_path / "run", every_n_steps=1, max_rows=3)
    fit(tiny_grpo(extras=extras), callbacks=[table])
    assert not (tmp_path / "run").exists()


def test_the_interval_works_with_several_updates_per_batch(fit, tiny_grpo, tmp_path):
    table = RolloutTable(run_dir=tmp_path, every_n_steps=5, max_rows=1)
    fit(tiny_grpo(updates_per_batch=3), callbacks=[table])
    steps = [row["step"] for row in read(tmp_path / "rollouts.jsonl")]
    # Batches end at steps 3, 6, ..., 18. The first is kept, and the first from 5, 10 and 15 on.
    assert steps == [3, 6, 12, 15]


def test_values_are_converted_for_json_and_tables():
    assert plain({"a": (1, float("inf")), "b": True, "c": Path("x")}) == {
        "a": [1, None],
        "b": True,
        "c": "x",
    }
    columns = table_columns([{"a": 1}, {"b": {"c": [1, 2, 3]}}])
    assert columns == {"a": [1, None], "b/c": [None, "[1, 2, 3]"]}
    assert markdown_table({"a|b": ["x\ny", 0.123456]}).splitlines() == [
        "| a\\|b |",
        "| --- |",
        "| x y |",
        "| 0.1235 |",
    ]


@pytest.mark.parametrize("setting", ["every_n_steps", "max_rows"])
def test_settings_below_one_are_refused(setting, tmp_path):
    settings = {"every_n_steps": 1, "max_rows": 1} | {setting: 0}
    with pytest.raises(ValueError, match=rf"rollout_table\.{setting} must be at least 1: got 0"):
        RolloutTable(run_dir=tmp_path, **settings)
