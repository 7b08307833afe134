"""Tests of the identity of a job: it contains exactly the settings that decide the result."""

import json

import pytest
from omegaconf import OmegaConf

from tvg.config import compose, register_resolvers
from tvg.config.contents import checkpoint_digest, sampled_digest
from tvg.config.identity import differences, identity_of
from tvg.config.resolvers import job_folder
from tvg.config.resume_table import may_change


@pytest.fixture
def files(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "mine.jsonl").write_text('{"video": "a.mp4", "query": "x", "segment": [0, 1]}\n')
    return tmp_path


@pytest.fixture(scope="module")
def composed():
    return compose("evaluate", ["data=custom", "data.video_dir=x", "model.path=x", "run_dir=r"]).cfg


@pytest.fixture
def name_of(files, composed):
    """Returns a function for the default name of an evaluation with changed keys."""

    def name(**changes):
        cfg = composed.copy()
        given = {
            "data.annotation_file": str(files / "mine.jsonl"),
            "data.video_dir": str(files),
            "model.path": str(files / "model"),
        }
        for key, value in (given | changes).items():
            OmegaConf.update(cfg, key, value)
        return cfg.name

    return name


@pytest.mark.parametrize(
    "changes",
    [{"prompt.fallback": "short"}, {"data.clip.fallback": "qwen3"}, {"seed": 3},
     {"rollout.max_new_tokens": 9}, {"greedy": False}, {"evaluate.strict_recall": True},
     {"data.limit_test": 1}, {"split": "train"}],
)  # fmt: skip
def test_different_evaluations_have_different_names(name_of, changes):
    assert name_of(**changes) != name_of()


@pytest.mark.parametrize(
    "changes",
    [{"data.num_workers": 7}, {"logger": None}, {"device": "cpu"}, {"run_dir": "x"},
     {"data.cache.folder": "elsewhere"}, {"data.batch_size": 9}],
)  # fmt: skip
def test_paths_and_workers_do_not_change_the_name(name_of, changes):
    assert name_of(**changes) == name_of()


def test_content_of_annotations_and_weights_changes_the_name(files, name_of):
    first = name_of()
    (files / "mine.jsonl").write_text('{"video": "a.mp4", "query": "y", "segment": [0, 1]}\n')
    second = name_of()
    (files / "model" / "model.safetensors").write_bytes(b"WEIGHTS")
    assert len({first, second, name_of()}) == 3


def test_moved_checkpoint_does_not_change_the_name(files, name_of):
    (files / "model").rename(files / "moved")
    moved = name_of(**{"model.path": str(files / "moved")})
    (files / "moved").rename(files / "model")
    assert moved == name_of()


def test_digest_of_large_file_depends_on_sampled_bytes(tmp_path):
    size = 40 * 2**20
    for name in ("one", "other"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    assert sampled_digest(tmp_path / "one") == sampled_digest(tmp_path / "other")
    with (tmp_path / "other").open("r+b") as file:
        file.seek(size - 1)
        file.write(b"x")
    assert sampled_digest(tmp_path / "one") != sampled_digest(tmp_path / "other")
    assert checkpoint_digest(tmp_path / "nowhere") == "missing"


@pytest.fixture(scope="module")
def training():
    return compose("train", ["run_dir=x", "+callbacks=[sample_filtering]"]).cfg


def changed(cfg, **changes):
    copy = cfg.copy()
    for key, value in changes.items():
        OmegaConf.update(copy, key, value)
    return identity_of("train", copy)


def test_identity_of_synthetic_data_depends_on_its_settings(tmp_path, training):
    place = {"data.world.root": str(tmp_path / "world")}
    before = changed(training, **place)
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "train.json").write_text("{}")
    assert changed(training, **place) == before == changed(training)
    assert changed(training, **place, **{"data.world.seed": 1}).digest != before.digest


def test_only_sample_filtering_callback_is_in_identity(training):
    first = changed(training)
    assert changed(training, **{"callbacks.rollout_table": None, "run_dir": "y"}) == first
    assert changed(training, **{"callbacks.sample_filtering.rescore": "selected"}) != first


def test_differences_name_both_values():
    before = {"seed": 0, "trainer.max_steps": 5, "prompt.template": "p" * 99}
    now = {"seed": 1, "trainer.max_steps": 9, "prompt.template": "q"}
    found = differences(before, now, may_change=may_change)
    assert found == f'seed was 0, is 1; prompt.template was "{"p" * 56}..., is "q"'


def test_sweep_names_jobs_by_their_overrides():
    register_resolvers()

    def folder(*words):
        return job_folder(OmegaConf.create(list(words)))

    first = folder("objective=grpo", "objective.optimizer.lr=1e-5", "resume=auto")
    assert first == folder("objective=grpo", "objective.optimizer.lr=1e-5")
    assert first.startswith("objective-grpo_optimizer.lr-1e-5_")
    assert first != folder("objective=grpo", "objective.optimizer.lr=1e-6")
    assert "/" not in folder("model.path=a/b")
    constant = ["experiment=demo_grpo", "model.path=runs/demo/sft/export", "trainer=cpu"]
    swept = folder(*constant, "trainer.val_check_interval=20", "reward.iou.weight=0.5")
    assert "iou.weight-0.5" in swept
    assert len(folder(*(f"key.number_{n}=value" for n in range(99)))) <= 255
    assert "," not in folder("reward=[format,iou]")


def test_non_finite_settings_are_stored_as_text():
    cfg = OmegaConf.create({"objective": {"clip": float("inf"), "kl": float("nan"), "lr": 0.5}})
    identity = identity_of("train", cfg)
    assert identity.decides == {
        "objective.clip": "Infinity",
        "objective.kl": "NaN",
        "objective.lr": 0.5,
    }
    assert json.loads(json.dumps(identity.as_json(), allow_nan=False)) == identity.as_json()
