"""End-to-end tests: SFT, GRPO, evaluation, prediction, preparation and logging, in this order."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from tvg.config import compose
from tvg.recorded import RECORD_FILE, record_text
from tvg.task.predictions import read_predictions

SMALL = [
    "prompt=short",
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.enable_progress_bar=false",
    "data.batch_size=2",
    "objective.micro_batch_size=1",
    "rollout.max_new_tokens=12",
    "data.limit_val=2",
]
METRICS = (
    *("n", "miou", "r1_iou_0.3", "r1_iou_0.5", "r1_iou_0.7"),
    *("parse_rate", "exact_format_rate"),
)


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Path:
    """Creates the folder of all runs; each test continues from the results of the last one."""
    return tmp_path_factory.mktemp("walk")


def logged(run_dir: Path) -> dict[str, list[float]]:
    """Returns the columns of the CSV logger."""
    header, *rows = (run_dir / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    cells = [dict(zip(names, row.split(","), strict=True)) for row in rows]
    return {name: [float(c[name]) for c in cells if c[name]] for name in names}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).state_dict()


def test_1_supervised_training(command, world, walked, tiny_checkpoint):
    run = walked / "sft"
    done = command(
        "train",
        *world,
        *SMALL,
        "objective=sft",
        "reward=[]",
        "objective.optimizer.lr=1e-3",
        f"model.path={tiny_checkpoint}",
        "logger=csv",
        f"run_dir={run}",
        "callbacks.checkpoint.every_n_train_steps=2",
    )
    assert done.code == 0, done.err
    assert "train split" in done.err
    columns = logged(run)
    assert len(columns["train/loss"]) == 2
    assert all(0 <= value <= 1 for value in columns["val/miou"] + columns["val/r1_iou_0.5"])
    assert (run / "checkpoints" / "last.ckpt").is_file()
    before, after = weights(tiny_checkpoint), weights(run / "export")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    AutoProcessor.from_pretrained(run / "export")
    record = (run / "export" / RECORD_FILE).read_text()
    assert "template: '{query}'" in record
    assert "max_pixels: 784" in record
    assert not list(run.rglob("*.tmp"))


def test_2_finished_run_folder_is_refused(command, world, walked, tiny_checkpoint):
    words = [*world, *SMALL, f"model.path={tiny_checkpoint}", f"run_dir={walked / 'sft'}"]
    error = command("train", *words, "logger=csv").error
    assert error.startswith(f"run_dir: {walked / 'sft'} already holds a run")


def test_3_grpo_logs_to_mlflow(command, world, walked):
    run, store = walked / "grpo", walked / "mlflow.db"
    done = command(
        "train",
        *world,
        *SMALL,
        f"model.path={walked / 'sft' / 'export'}",
        "prompt=recorded",
        "prompt.fallback=think",
        "objective.group_size=2",
        "objective.loss.kl_coef=0.1",
        "objective.optimizer.lr=1e-3",
        "reward.format.reward.think=false",
        "+reward.length={weight:1.0,reward:{_target_:helpers.tiny_policy.LengthReward}}",
        "data.batch_size=1",
        "logger=[csv,mlflow]",
        f"logger.mlflow.tracking_uri=sqlite:///{store}",
        f"run_dir={run}",
    )
    assert done.code == 0, done.err
    columns = logged(run)
    assert columns["train/policy/kl"][0] == pytest.approx(0, abs=1e-6)  # equals the reference
    assert columns["train/policy/kl"][1] > 0
    assert all(gap < 1e-4 for gap in columns["train/policy/sampler_gap"])
    assert columns["train/policy/importance_ratio"] == pytest.approx([1.0, 1.0])
    for name in (
        "reward/total",
        "reward/iou",
        "reward/format",
        "completion/parse_rate",
        "completion/exact_format_rate",
    ):
        assert all(0 <= value <= 3 for value in columns[f"train/{name}"]), name
    assert len(columns["perf/tokens_per_s"]) == 2
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 2  # the first step's group; the table is written every ten steps
    record = (run / "export" / RECORD_FILE).read_text()
    assert "recorded" not in record  # values, not a reference to another record
    assert record == (walked / "sft" / "export" / RECORD_FILE).read_text()
    check_mlflow(run, f"sqlite:///{store}")


def check_mlflow(run_dir: Path, uri: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run_id = json.loads((run_dir / "mlflow_run.json").read_text())["run_id"]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "grpo"
    assert {"data", "model", "seed"} <= run.data.params.keys()
    assert run.data.params["data"] == "synthetic"
    assert "version.torch" in run.data.tags
    for name in ("train/reward/total", "train/policy/kl", "val/miou", "perf/tokens_per_s"):
        assert name in run.data.metrics, name
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [0, 1]
    artifacts = {a.path for a in client.list_artifacts(run_id)}
    assert {"config.yaml", "run.json"} <= artifacts
    folders = [a.path for a in client.list_artifacts(run_id) if a.is_dir]
    inner = {a.path for folder in folders for a in client.list_artifacts(run_id, folder)}
    assert any(path.endswith(".png") for path in inner), inner
    assert any("rollouts" in path for path in artifacts | inner), artifacts | inner


def test_4_evaluation(command, world, walked):
    run = walked / "eval"
    words = [
        *world,
        f"model.path={walked / 'grpo' / 'export'}",
        "rollout.max_new_tokens=12",
        "data.eval_batch_size=4",
        "logger=[]",
        f"run_dir={run}",
    ]
    done = command("evaluate", *words)
    assert done.code == 0, done.err
    assert "using prompt=" not in done.err  # the recorded prompt was used
    metrics = json.loads((run / "metrics.json").read_text())
    predictions = read_predictions(run / "predictions.jsonl")
    first = json.loads((run / "predictions.jsonl").read_text().splitlines()[0])
    keys = {"qid", "video", "query", "segment", "truth", "score", "text", "duration_s"}
    keys |= {"is_parsed", "is_exact", "answer", "expected"}
    assert first.keys() == keys
    assert metrics["n"] == len(predictions) > 0
    assert (metrics["dataset"], metrics["split"]) == ("synthetic", "test")
    for name in METRICS[1:]:
        low, high = metrics["ci95"][name]
        assert 0 <= low <= metrics[name] <= high <= 1, name
    ious = [p.score for p in predictions]
    assert metrics["miou"] == pytest.approx(sum(ious) / len(ious))
    assert metrics["r1_iou_0.5"] == pytest.approx(sum(iou >= 0.5 for iou in ious) / len(ious))
    names = {"config.yaml", "metrics.json", "predictions.jsonl", "run.json"}
    assert {p.name for p in run.iterdir()} == names | {"evaluate.log", "identity.json"}
    assert "miou" in done.out


def test_5_stopped_evaluation_resumes(command, world, walked, monkeypatch):
    import tvg.jobs.evaluate

    class StoppedError(Exception):
        pass

    class Bar:
        """Stops after the first batch, like a kill between two batches."""

        def __init__(self, **settings):
            self.initial = settings["initial"]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def update(self, num):
            raise StoppedError

    run = walked / "eval_again"
    words = [
        *world,
        f"model.path={walked / 'grpo' / 'export'}",
        "rollout.max_new_tokens=12",
        "data.eval_batch_size=4",
        "logger=[]",
        f"run_dir={run}",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(tvg.jobs.evaluate, "tqdm", Bar)
        with pytest.raises(StoppedError):
            command("evaluate", *words)
    assert (run / "predictions.partial.jsonl").is_file()
    assert not (run / "predictions.jsonl").exists()
    done = command("evaluate", *words)
    assert "resuming after 4 of" in done.err
    for name in ("predictions.jsonl", "metrics.json"):
        assert (run / name).read_bytes() == (walked / "eval" / name).read_bytes()


def test_6_prediction(command, walked, tiny_world):
    video = sorted((tiny_world / "videos").iterdir())[0]
    picture = walked / "shown" / "answer.png"
    done = command(
        "predict",
        f"model.path={walked / 'grpo' / 'export'}",
        f"video={video}",
        'query="a red [ball], moving"',
        "window=[2,8]",
        "truth=[1,4]",
        "rollout.max_new_tokens=12",
        f"picture={picture}",
    )
    assert done.code == 0, done.err
    assert "using prompt=" not in done.err
    with Image.open(picture) as image:
        image.verify()
        assert image.format == "PNG"
        assert min(image.size) > 100
    found = json.loads(picture.with_suffix(".json").read_text())
    assert found["truth"] == [1.0, 4.0]
    assert found["duration_s"] == pytest.approx(6.0, abs=0.1)
    assert found["query"] == "a red [ball], moving"
    assert "clip: 6.0" in done.out
    assert "12 frames at" in done.out
    assert "28x28 pixels" in done.out  # the recorded size, not Qwen's default
    assert ("s of the window, " in done.out) == (found["segment"] is not None)
    assert found["window"] == [2.0, 8.0]
    assert sorted(p.name for p in picture.parent.iterdir()) == ["answer.json", "answer.png"]


def test_7_preparation(command, world, tiny_world, tmp_path):
    done = command("prepare", *world, "prepare.report=out/report.json")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dataset"] == "synthetic"
    assert report["videos"] == 12
    assert report["unreadable"] == {}
    sizes = [path.stat().st_size for path in (tiny_world / "videos").iterdir()]
    assert (report["bytes"], report["video_bytes"]) == (0, sum(sizes))  # without a cache
    assert {s: r["videos"] for s, r in report["splits"].items()} == {
        "train": 6,
        "val": 3,
        "test": 3,
    }
    for split in report["splits"].values():
        assert split["queries"] == split["kept"] > 0
        assert split["defects"] == {}
    assert "synthetic: as read" in done.out


def test_record_contains_the_text_of_a_template_file(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("When does [EVENT] happen? {as JSON}")
    words = ["prompt=short", "prompt.template=null", f"prompt.template_file={path}"]
    text = record_text(compose("train", words).cfg)
    assert "template: When does {query} happen? {{as JSON}}" in text
    assert "template_file" not in text  # a record contains no file names


def test_all_logged_metrics_are_finite(walked):
    for stage in ("sft", "grpo"):
        for name, values in logged(walked / stage).items():
            assert values, name
            assert all(math.isfinite(value) for value in values), name


def test_lightning_adds_no_distributed_sampler():
    assert compose("train").cfg.trainer.use_distributed_sampler is False
