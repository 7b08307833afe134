"""Tests of a minimal demo: its stages, the results file, and resuming after an interruption."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

import tvg.jobs.demo
from tvg.config import build, compose


def demo_config(run_dir, world):
    """Returns the demo's config, reduced to a few steps on the tiny data set."""
    small = ["trainer.max_steps=2", "trainer.val_check_interval=2", "data.batch_size=2"]
    small += ["objective.micro_batch_size=2", "objective.schedule.warmup_steps=1"]
    stages = {
        "shared": [
            "data=synthetic_demo",
            *(f"data.{split}_file={world}/{split}.json" for split in ("train", "val", "test")),
            "data.world=null",
            f"data.video_dir={world}/videos",
            "rollout.max_new_tokens=6",
            "logger=[]",
        ],
        "sft": ["experiment=demo_sft", *small],
        "grpo": ["experiment=demo_grpo", *small, "objective.group_size=2"],
        "evaluation": ["experiment=demo_evaluate"],
    }
    cfg = compose("train", ["experiment=demo", "demo.seed=5", f"run_dir={run_dir}"]).cfg
    for name, overrides in stages.items():
        cfg.job[name] = overrides
    return cfg


@pytest.mark.slow
def test_interrupted_demo_resumes_and_writes_all_results(
    tmp_path, tiny_world, capsys, monkeypatch, request
):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)
    cfg = demo_config(tmp_path / "demo", tiny_world)
    interrupted = True
    evaluate = tvg.jobs.demo.evaluate

    def stop_once(stage_cfg):
        nonlocal interrupted
        assert torch.get_num_threads() == cfg.job.num_threads == 1
        if interrupted:
            interrupted = False
            raise KeyboardInterrupt
        return evaluate(stage_cfg)

    monkeypatch.setattr(tvg.jobs.demo, "evaluate", stop_once)
    with pytest.raises(KeyboardInterrupt):
        build(cfg.job)(cfg)
    before = (tmp_path / "demo" / "sft" / "checkpoints" / "last.ckpt").stat().st_ino
    miou = build(cfg.job)(cfg)  # resumes: finished stages are not trained again
    assert torch.get_num_threads() == 2
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results["seed"] == 5
    assert set(results["seconds"]) == {"data", "sft", "grpo", "eval", "total"}
    num = results["chance"]["n"]
    for policy in ("chance", "constant", "sft", "grpo"):
        assert {"miou", "r1_iou_0.3", "r1_iou_0.5", "r1_iou_0.7", "parse_rate"} <= set(
            results[policy]
        )
        assert results[policy]["n"] == num
    assert results["grpo"]["miou"] == miou
    difference = results["grpo"]["miou"] - results["sft"]["miou"]
    assert results["gain"]["miou"] == pytest.approx(difference)
    low, high = results["gain"]["ci95"]
    assert low <= results["gain"]["miou"] <= high
    assert len(list((tmp_path / "demo" / "pictures").glob("*.png"))) == 3
    assert "GRPO gains" in capsys.readouterr().out
    assert before  # the checkpoint existed when the first run was stopped


def test_overrides_that_reach_no_stage_are_refused(monkeypatch):
    def check(*words):
        settings = SimpleNamespace(overrides=SimpleNamespace(task=OmegaConf.create(list(words))))
        monkeypatch.setattr(tvg.jobs.demo.HydraConfig, "initialized", staticmethod(lambda: True))
        monkeypatch.setattr(tvg.jobs.demo.HydraConfig, "get", staticmethod(lambda: settings))
        tvg.jobs.demo._refuse_lost_overrides()

    check("experiment=demo", "demo.seed=2", "name=other", "hydra.run.dir=x")
    with pytest.raises(ValueError, match=r"max_steps=5.*would have no effect.*job\.shared"):
        check("experiment=demo", "trainer.max_steps=5")


def test_finished_demo_starts_again_and_interrupted_demo_resumes(tmp_path):
    run_dir = tmp_path / "demo"
    tvg.jobs.demo._begin(run_dir, [1, "a"])
    (run_dir / "sft").mkdir()
    tvg.jobs.demo._begin(run_dir, [1, "a"])
    assert (run_dir / "sft").is_dir()
    tvg.jobs.demo._begin(run_dir, [2, "a"])  # another seed
    assert not (run_dir / "sft").exists()
    (run_dir / "sft").mkdir()
    (run_dir / tvg.jobs.demo.UNFINISHED).unlink()  # as at the end of a demo
    (run_dir / "results.json").write_text("{}")
    tvg.jobs.demo._begin(run_dir, [2, "a"])
    assert not (run_dir / "sft").exists()
    assert not (run_dir / "results.json").exists()  # so that old results are not read as new ones
    shutil.rmtree(run_dir)
