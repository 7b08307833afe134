"""Tests of LoRA training: updated weights, contents of checkpoints, and resuming."""

import functools

import pytest
import torch
from helpers.grpo_module import make_module
from helpers.tiny_lora import make_lora_parts
from helpers.tiny_policy import make_parts, make_rollout
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from tvg.model import freezing
from tvg.rollout.shared_prefix import SharedPrefixEngine
from tvg.training.schedule import warmup_schedule
from tvg.training.sft import SFTModule

STEPS = 4


def sft_module(made, **changes):
    settings = {
        "policy": made.policy,
        "tokenizer": made.tokenizer,
        "task": made.task,
        "rollout": make_rollout(),
        "micro_batch_size": 2,
        "optimizer": functools.partial(torch.optim.AdamW, lr=1e-2),
        "schedule": functools.partial(warmup_schedule, name="linear", warmup_steps=0),
        "max_grad_norm": 1.0,
        "max_skipped_steps": 5,
        "component_lr": {},
        "seed": 0,
    }
    return SFTModule(**{**settings, **changes})


def grpo_module(made, **changes):
    module = make_module(
        made,
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-2),
        kl_coef=0.1,
        **changes,
    )
    del module.manual_backward, module._trainer  # set for use without `fit`
    module._trainer = None
    return module


class KilledError(Exception):
    pass


class Stop(Callback):
    """Saves a checkpoint after `step` steps and stops the run."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KilledError


def fit(module, made, folder, *callbacks, ckpt_path=None):
    losses = []
    module._log_step = lambda output: losses.append(output.metrics.get("loss"))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    batches = [made.batch(2) for _ in range(STEPS)]
    trainer.fit(
        module, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path, weights_only=True
    )
    return trainer, [float(loss) for loss in losses if loss is not None]


def state(module):
    return {name: value.clone() for name, value in module.policy.state_dict().items()}


@pytest.mark.parametrize("make", [sft_module, grpo_module])
def test_only_adapters_are_updated(tiny_checkpoint, tiny_world, tmp_path, make):
    made = make_lora_parts(tiny_checkpoint, tiny_world)
    module = make(made)
    before = state(module)
    _, losses = fit(module, made, tmp_path)
    moved = {name for name, value in state(module).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".lora_" in name}
    if make is sft_module:
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("make", [sft_module, grpo_module])
def test_resumed_run_equals_an_uninterrupted_one(tiny_checkpoint, tiny_world, tmp_path, make):
    def start():
        made = make_lora_parts(tiny_checkpoint, tiny_world, full_components=["merger"])
        return make(made), made

    module, made = start()
    whole, losses = fit(module, made, tmp_path)
    stopped, made = start()
    with pytest.raises(KilledError):
        fit(stopped, made, tmp_path, Stop(2, tmp_path / "half.ckpt"))
    resumed, made = start()
    again, later = fit(resumed, made, tmp_path, ckpt_path=tmp_path / "half.ckpt")
    assert again.global_step == whole.global_step
    one, other = state(module), state(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], state(stopped)[name]) for name in one)
    assert later == losses[-len(later) :]


def checkpoint(made, folder, make=sft_module):
    """Trains for one step and returns the module and the path of its checkpoint."""
    module = make(made)
    with pytest.raises(KilledError):
        fit(module, made, folder, Stop(1, folder / "one.ckpt"))
    return module, folder / "one.ckpt"


def test_checkpoint_contains_only_the_trained_weights(tiny_checkpoint, tiny_world, tmp_path):
    made = make_lora_parts(tiny_checkpoint, tiny_world, full_components=["merger"])
    module, path = checkpoint(made, tmp_path, grpo_module)
    found = torch.load(path, weights_only=True)["state_dict"]
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert set(found) == trained
    assert {".lora_" in name or ".visual.merger." in name for name in found} == {True}


def test_checkpoint_of_full_training_contains_all_weights(tiny_checkpoint, tiny_world, tmp_path):
    module, path = checkpoint(make_parts(tiny_checkpoint, tiny_world), tmp_path)
    found = torch.load(path, weights_only=True)["state_dict"]
    # Tied weights are saved under both names.
    assert set(found) == {f"policy.{name}" for name in module.policy.state_dict()}


def test_older_checkpoint_with_frozen_weights_still_loads(tiny_checkpoint, tiny_world, tmp_path):
    made = make_lora_parts(tiny_checkpoint, tiny_world)
    module, path = checkpoint(made, tmp_path)
    old = torch.load(path, weights_only=True)
    old["state_dict"] = {f"policy.{n}": v for n, v in state(module).items()}
    torch.save(old, tmp_path / "old.ckpt")
    ends = []
    for name in ("one.ckpt", "old.ckpt"):
        made = make_lora_parts(tiny_checkpoint, tiny_world)
        resumed = sft_module(made)
        fit(resumed, made, tmp_path, ckpt_path=tmp_path / name)
        ends.append(state(resumed))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["q_proj", "o_proj"]}, "started from other weights"),
        ({"rank": 8}, "started from other weights"),
        ({"seed": 1}, "started from other weights"),
        (
            {"full_components": ["merger"]},
            r"^resume: the checkpoint lacks .* weights that are trained",
        ),
    ],
)
def test_run_with_other_adapters_is_not_resumed(
    tiny_checkpoint, tiny_world, tmp_path, changes, message
):
    _, path = checkpoint(make_lora_parts(tiny_checkpoint, tiny_world), tmp_path)
    other = make_lora_parts(tiny_checkpoint, tiny_world, **changes)
    with pytest.raises(ValueError, match=message):
        fit(sft_module(other), other, tmp_path, ckpt_path=path)


def test_full_training_is_not_resumed_from_adapters(tiny_checkpoint, tiny_world, tmp_path):
    _, path = checkpoint(make_lora_parts(tiny_checkpoint, tiny_world), tmp_path)
    made = make_parts(tiny_checkpoint, tiny_world)
    with pytest.raises(ValueError, match=r"^resume: the checkpoint lacks .*model.adapter"):
        fit(sft_module(made), made, tmp_path, ckpt_path=path)


@pytest.mark.parametrize(
    ("dtype", "is_autocast", "is_warned"),
    [("float32", True, True), ("float32", False, False), ("bfloat16", True, False)],
)
def test_frozen_float32_weights_under_autocast_are_warned_of(
    tiny_checkpoint, tiny_world, caplog, dtype, is_autocast, is_warned
):
    freezing._warn_once.cache_clear()
    parts = make_lora_parts(tiny_checkpoint, tiny_world, dtype=dtype)
    rollout = make_rollout(SharedPrefixEngine, max_new_tokens=1)
    rollout.setup(policy=parts.policy, tokenizer=parts.tokenizer)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        for _ in range(2):
            rollout.greedy().generate(parts.batch(1), group_size=1, seed=0)
    warnings = [r.message for r in caplog.records if r.name == "tvg.model.freezing"]
    assert len(warnings) == is_warned
    assert all("model.dtype=bfloat16" in message for message in warnings)
