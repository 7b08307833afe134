"""Tests of commands on a checkpoint folder like a released one, with a real video clip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.released_checkpoint import today, write_release
from safetensors import safe_open
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

VIDEO = "OHOFG"


@pytest.fixture(scope="module")
def release(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = shared_dir / "data" / "release_layout" / "qwen2_5_vl"
    if not layout.is_dir():
        pytest.skip("needs the folder `release_layout` in `shared`")
    return write_release(layout, tmp_path_factory.mktemp("release") / "Qwen2.5-VL-Instruct")


@pytest.fixture(scope="module")
def real(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Returns overrides for a real clip and its annotations."""
    videos = shared_dir / "data" / "videos"
    listed = json.loads((shared_dir / "data" / "charades_sta" / "val.json").read_text())
    file = tmp_path_factory.mktemp("annotations") / "train.json"
    file.write_text(json.dumps({VIDEO: listed[VIDEO]}))
    return [
        "data=charades",
        *(f"data.{split}_file={file}" for split in ("train", "val", "test")),
        f"data.video_dir={videos}",
        "data/clip=one_token",
        "data.num_workers=0",
        "data.clip.sampling.max_frames=8",
        "data.limit_val=1",
        "data.batch_size=1",
    ]


SHORT = [
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.enable_progress_bar=false",
    "objective.micro_batch_size=1",
    "rollout.max_new_tokens=6",
    "logger=csv",
    "callbacks.timelines=null",
    "model=qwen2_5_vl_3b",
]


def logged(run_dir: Path) -> dict[str, list[float]]:
    """Returns the columns of the CSV logger."""
    header, *rows = (run_dir / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    cells = [dict(zip(names, row.split(","), strict=True)) for row in rows]
    return {name: [float(c[name]) for c in cells if c[name]] for name in names}


def released_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= {today(name): tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return found


def test_predict_on_a_real_clip(command, release, shared_dir, tmp_path):
    video = shared_dir / "data" / "videos" / f"{VIDEO}.mp4"
    done = command(
        "predict",
        "model=qwen2_5_vl_3b",
        f"model.path={release}",
        f"video={video}",
        "query=a person is eating some food.",
        "data/clip@clip=qwen",
        "clip.timeout_s=null",
        "clip.sampling.max_frames=16",
        "rollout.max_new_tokens=8",
        f"picture={tmp_path / 'answer.png'}",
    )
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "answer.json").read_text())
    assert found["duration_s"] == pytest.approx(35, abs=0.2)
    assert "clip: 3" in done.out
    assert "16 frames at" in done.out


@pytest.mark.slow
def test_export_of_grpo_with_kl_loads_in_transformers(command, release, real, tmp_path):
    run = tmp_path / "grpo"
    done = command(
        "train",
        *real,
        *SHORT,
        f"model.path={release}",
        "model.dtype=float32",
        "objective.group_size=2",
        "objective.loss.kl_coef=0.1",
        "objective.optimizer.lr=1e-3",
        "+reward.length={weight:1.0,reward:{_target_:helpers.tiny_policy.LengthReward}}",
        "data/cache=none",
        f"run_dir={run}",
    )
    assert done.code == 0, done.err
    columns = logged(run)
    assert columns["train/policy/kl"][0] == pytest.approx(0, abs=1e-6)
    assert columns["train/policy/kl"][1] > 0
    assert all(gap < 1e-3 for gap in columns["train/policy/sampler_gap"])
    before = released_tensors(release)
    after = Qwen2_5_VLForConditionalGeneration.from_pretrained(run / "export").state_dict()
    assert before.keys() == after.keys() - {"lm_head.weight"}  # tied: not stored
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert any("language_model.layers" in name for name in changed)
    assert all(".merger." in name for name in changed if ".visual." in name)  # the trunk is frozen
    first, second = (AutoProcessor.from_pretrained(folder) for folder in (release, run / "export"))
    assert second.chat_template == first.chat_template
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    generation = json.loads((run / "export" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [151645, 151643]


@pytest.mark.slow
def test_supervised_lora_on_cached_features(command, release, real, tmp_path):
    run = tmp_path / "sft"
    cached = [*real, "data/cache=features", f"data.cache.folder={tmp_path / 'cache'}"]
    model = ["model=qwen2_5_vl_3b", f"model.path={release}", "model.dtype=bfloat16"]
    done = command("prepare", *cached, *model, f"prepare.report={tmp_path / 'report.json'}")
    assert done.code == 0, done.err
    done = command(
        "train",
        *cached,
        *SHORT,
        *model,
        "objective=sft",
        "reward=[]",
        "model/adapter=lora",
        "model.freeze_merger=true",
        "objective.optimizer.lr=1e-2",
        f"run_dir={run}",
    )
    assert done.code == 0, done.err
    assert len(logged(run)["train/loss"]) == 2
    before = released_tensors(release)
    after = Qwen2_5_VLForConditionalGeneration.from_pretrained(run / "export").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name].bfloat16())}
    assert changed
    assert all("language_model.layers" in name and "_proj" in name for name in changed)
    names = (run / "export" / "weights.sha256").read_text()
    assert "adapter/adapter_model.safetensors" in names


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_tokenizer"])
def tokenizer(request, shared_dir):
    folder = shared_dir / "data" / "release_layout" / request.param
    if not folder.is_dir():
        pytest.skip("needs the folder `release_layout` in `shared`")
    return AutoTokenizer.from_pretrained(folder)


def pieces(tokenizer, text: str) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [tokenizer.decode([token]) for token in ids]


def test_each_digit_of_an_answer_is_a_token(tokenizer):
    found = pieces(tokenizer, "<answer>12.54 to 117.83</answer>")
    assert found == [
        *("<", "answer", ">", "1", "2", ".", "5", "4", " to", " "),
        *("1", "1", "7", ".", "8", "3", "</", "answer", ">"),
    ]


def test_think_marks_are_kept_when_completions_are_decoded(tokenizer):
    text = "<think>a</think>\n<answer>1.0 to 2.5</answer>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    is_one_token = "<think>" in tokenizer.get_vocab()
    assert pieces(tokenizer, "<think>") == (["<think>"] if is_one_token else ["<th", "ink", ">"])
    assert "<think>" not in tokenizer.all_special_tokens
