"""Tests that GRPO stores no logits of prompt tokens, and needs constant memory over steps.

A dispatch mode checks every tensor that an operation returns, also in the backward pass.
"""

import functools
import gc
import os
from pathlib import Path

import pytest
import torch
from helpers.grpo_module import learn, make_loss
from helpers.tiny_policy import make_parts, make_rollout, sample_with
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tvg.core.advantage import group_advantages
from tvg.core.logprobs import token_logprobs
from tvg.reward.weighted import WeightedReward
from tvg.rollout.shared_prefix import SharedPrefixEngine
from tvg.training.grpo import GRPOModule
from tvg.training.schedule import warmup_schedule

GROUP_SIZE, MAX_NEW_TOKENS, NUM_PROMPTS = 4, 6, 3


class Odd:
    """Reward from the text's length, which usually differs within a group."""

    def __call__(self, *, texts, **rest):
        return [float(len(text) % 7) for text in texts]


class VocabularyWatch(TorchDispatchMode):
    """Records the largest number of rows of a tensor [..., V], except the head's weights."""

    def __init__(self, policy):
        super().__init__()
        head = policy.model.lm_head.weight
        self.size, self.width, self.rows = *head.shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and value.ndim and value.shape[-1] == self.size:
                is_head = value.shape == (self.width, self.size) and not value.is_contiguous()
                self.rows = max(self.rows, 0 if is_head else value.numel() // self.size)
        return out


def make_module(parts, *, lr=0.0):
    settings = {
        "max_new_tokens": MAX_NEW_TOKENS,
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 0,
        "prompts_per_call": None,
    }
    return GRPOModule(
        rollout=SharedPrefixEngine(**settings),
        reward=WeightedReward(rewards={"odd": Odd()}, weights={"odd": 1.0}),
        loss=make_loss(kl_coef=0.1),
        group_size=GROUP_SIZE,
        advantage=functools.partial(
            group_advantages, baseline="group_mean", scale="group_std", eps=1e-4
        ),
        num_updates=1,
        old_logprobs="policy",
        resample_flat_groups=None,
        reference="initial",
        reference_offload=False,
        micro_batch_completions=None,
        scoring_fps=None,
        preflight=None,
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        task=parts.task,
        micro_batch_size=NUM_PROMPTS,
        optimizer=functools.partial(torch.optim.AdamW, lr=lr),
        schedule=functools.partial(warmup_schedule, name="constant", warmup_steps=0),
        max_grad_norm=1.0,
        max_skipped_steps=5,
        component_lr={},
        seed=0,
    )


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world)


@pytest.fixture(scope="module")
def prompts(parts):
    batch = parts.batch(NUM_PROMPTS)
    # The logits of one prompt would have more rows than those of all its completions.
    assert int(batch.attention_mask.sum(1).min()) > GROUP_SIZE * MAX_NEW_TOKENS
    return batch


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_training_stores_only_logits_of_completion_tokens(
    parts, prompts, is_checkpointed, monkeypatch
):
    module = make_module(parts)
    module._trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    module.manual_backward = torch.Tensor.backward
    if is_checkpointed:
        parts.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        parts.policy.train()
    try:
        rollout = sample_with(
            module.rollout,
            policy=parts.policy,
            tokenizer=parts.tokenizer,
            prompts=prompts,
            group_size=GROUP_SIZE,
            seed=0,
        )
        num_tokens = int(rollout.completion_mask.sum())
        with VocabularyWatch(parts.policy) as watch:
            learn(module, rollout, torch.linspace(-1, 1, NUM_PROMPTS * GROUP_SIZE))
        assert watch.rows == num_tokens < int(prompts.attention_mask.sum())
        # With chunks, at most one chunk of rows exists at a time.
        monkeypatch.setattr(
            "tvg.model.policy.token_logprobs",
            functools.partial(token_logprobs, chunk_tokens=5),
        )
        with VocabularyWatch(parts.policy) as watch:
            learn(module, rollout, torch.linspace(-1, 1, NUM_PROMPTS * GROUP_SIZE))
        assert watch.rows == 5
    finally:
        parts.policy.model.gradient_checkpointing_disable()
        parts.policy.eval().zero_grad()


@pytest.mark.parametrize("engine", ["shared_prefix", "hf"])
def test_sampling_stores_one_row_of_logits_per_completion(parts, prompts, engine):
    shared = make_module(parts).rollout
    rollout = shared if engine == "shared_prefix" else make_rollout(max_new_tokens=MAX_NEW_TOKENS)
    with VocabularyWatch(parts.policy) as watch:
        sample_with(
            rollout,
            policy=parts.policy,
            tokenizer=parts.tokenizer,
            prompts=prompts,
            group_size=GROUP_SIZE,
            seed=0,
        )
    assert watch.rows == NUM_PROMPTS * GROUP_SIZE


def test_the_watch_counts_the_logits_of_prompts(parts, prompts):
    """Transformers' own forward pass projects every token onto the vocabulary."""
    with VocabularyWatch(parts.policy) as watch, torch.no_grad():
        parts.policy.model(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            position_ids=parts.policy.position_ids(prompts),
            pixel_values_videos=prompts.pixel_values_videos,
            video_grid_thw=prompts.video_grid_thw,
        )
    assert watch.rows == prompts.input_ids.numel()


class MemoryWatch(Callback):
    """Records the memory before each backward pass, and the number of tensors every 20 steps."""

    def __init__(self):
        self.mib, self.tensors = [], []

    def on_before_backward(self, *_):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def on_train_batch_end(self, *_):
        if len(self.mib) % 20 == 0:
            gc.collect()
            self.tensors.append(sum(isinstance(thing, Tensor) for thing in gc.get_objects()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_over_200_steps(tiny_checkpoint, tiny_world, tmp_path):
    parts = make_parts(tiny_checkpoint, tiny_world)
    module, watch = make_module(parts, lr=1e-4), MemoryWatch()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=200,
        callbacks=[watch],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    batches = torch.utils.data.DataLoader([parts.batch(NUM_PROMPTS)] * 200, batch_size=None)
    trainer.fit(module, batches)
    assert len(watch.mib) == 200
    # The allocator is in a steady state after the first steps. A leak of 25 KiB per step (the
    # logits of one token per completion) would add more than 3 MiB in 130 steps.
    assert max(watch.mib[-50:]) - max(watch.mib[20:70]) < 3, watch.mib[::20]
    assert max(watch.tensors[2:]) <= watch.tensors[1], watch.tensors
