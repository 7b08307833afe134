"""Tests of `model/adapter=lora`: supervised training, then GRPO from its export."""

import torch
from safetensors.torch import load_file

RUN = [
    "model/adapter=lora",
    "model.adapter.rank=4",
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "data.batch_size=2",
    "data.num_workers=0",
    "prompt=answer_only",
    "rollout.max_new_tokens=8",
    "logger=csv",
    "objective.optimizer.lr=1e-2",
]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_supervised_training_and_grpo_with_adapters(command, world, tiny_checkpoint, tmp_path):
    sft, grpo = tmp_path / "sft", tmp_path / "grpo"
    words = [*RUN, *world]
    done = command(
        "train", *words, f"model.path={tiny_checkpoint}", f"run_dir={sft}", "objective=sft",
        "reward=[]",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert weights(sft / "export").keys() == weights(tiny_checkpoint).keys()
    done = command(
        "train", *words, f"model.path={sft / 'export'}", f"run_dir={grpo}",
        "objective.loss.kl_coef=0.1", "objective.group_size=3",
        "objective.component_lr.adapter=1e-3",
        "+reward.odd.weight=1.0", "+reward.odd.reward._target_=helpers.tiny_policy.LengthReward",
    )  # fmt: skip
    assert done.code == 0, done.err
    before, after = weights(sft / "export"), weights(grpo / "export")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in moved} <= {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert not any("visual" in name for name in moved)
    state = torch.load(grpo / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {".lora_" in name for name in state} == {True}
    assert (grpo / "export" / "adapter" / "adapter_config.json").is_file()


def test_contradictory_lora_settings_are_refused_before_loading(command, world, tmp_path):
    error = command(
        "train", *world, "model/adapter=lora", "model.path=nowhere", "model.freeze_language=true",
        "model.adapter.dropout=0.1", f"run_dir={tmp_path / 'run'}",
    ).error  # fmt: skip
    assert "model.adapter.components: language is to be trained" in error
    assert "model.adapter.dropout: must be 0" in error
