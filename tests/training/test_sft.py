"""Tests of supervised training: labels, the loss on answer tokens, and micro-batches."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from helpers.tiny_policy import make_parts, make_rollout
from lightning.pytorch import Trainer

from tvg.model.completion_states import repeated
from tvg.training.schedule import warmup_schedule
from tvg.training.sft import SFTModule, target_tokens
from tvg.types import Segment


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    made.policy.double()
    return made


@pytest.fixture(scope="module")
def batch(parts):
    prompts = parts.batch(3)
    # Labels of different lengths, one of them a hint.
    labels = [Segment(0.0, 4.0), Segment(10.0, 12345.5), Segment(1.0, 2.0)]
    examples = [
        replace(e, segment=label, hint=None)
        for e, label in zip(prompts.examples, labels, strict=True)
    ]
    examples[2] = replace(examples[2], hint=Segment(0.0, 10.0))
    return replace(prompts, examples=examples)


class Stepless(SFTModule):
    """Skips the optimizer step, so that tests can read the gradients."""

    def step_optimizer(self, loss, *, describe):
        return {}


def make_module(parts, cls=SFTModule, *, micro_batch_size=3, lr=0.0, **changes):
    module = cls(
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        task=parts.task,
        rollout=make_rollout(),
        micro_batch_size=micro_batch_size,
        optimizer=functools.partial(torch.optim.AdamW, lr=lr),
        schedule=functools.partial(warmup_schedule, name="constant", warmup_steps=0),
        **{"max_grad_norm": None, "max_skipped_steps": 5, "component_lr": {}, "seed": 0, **changes},
    )
    module.trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    module.trainer.strategy.connect(module)
    return module


def learn(parts, batch, micro_batch_size=3):
    """Returns the metrics and the gradients of one step."""
    module = make_module(parts, Stepless, micro_batch_size=micro_batch_size)
    parts.policy.zero_grad()
    output = module.step(batch, is_last_batch=False)
    grads = {n: p.grad.clone() for n, p in parts.policy.named_parameters() if p.grad is not None}
    return output.metrics, grads


def test_label_is_the_hint_if_there_is_one(parts, batch):
    ids, mask = target_tokens(batch, parts.task, parts.tokenizer)
    texts = [parts.tokenizer.decode(row[keep.bool()]) for row, keep in zip(ids, mask, strict=True)]
    end = parts.tokenizer.eos_token
    assert texts == [
        f"<answer>0.0 to 4.0</answer>{end}",
        f"<answer>10.0 to 12345.5</answer>{end}",
        f"<answer>0.0 to 10.0</answer>{end}",
    ]
    lengths = mask.sum(1).tolist()
    assert len(set(lengths)) > 1
    assert all(row.tolist() == sorted(row.tolist(), reverse=True) for row in mask)
    assert (ids[mask == 0] == parts.tokenizer.pad_token_id).all()


def test_example_without_a_label_is_refused(parts, batch):
    bare = replace(batch.examples[1], segment=None, hint=None)
    prompts = replace(batch, examples=[batch.examples[0], bare, batch.examples[2]])
    with pytest.raises(ValueError, match=rf"^{bare.qid}: supervised training needs a segment$"):
        target_tokens(prompts, parts.task, parts.tokenizer)


def test_loss_is_the_mean_over_answer_tokens(parts, batch):
    ids, mask = target_tokens(batch, parts.task, parts.tokenizer)
    total, count = 0.0, 0
    for index in range(3):
        # One example without padding, through the model's LM head.
        row = parts.collator([parts.dataset[index]])
        answer = ids[index][mask[index].bool()]
        policy = parts.policy
        with torch.no_grad():
            one = torch.ones(1, len(answer), dtype=torch.int64)
            states = repeated(policy, row, answer[None], one, 1)
            logits = policy.model.lm_head(states).double()
            logits[:, policy.suppressed_ids] = -math.inf
            chosen = logits.log_softmax(-1).gather(1, answer[:, None])
        total -= float(chosen.sum())
        count += len(answer)
    logged, _ = learn(parts, batch)
    assert float(logged["loss"]) == pytest.approx(total / count, rel=1e-5)
    assert count == int(mask.sum())


def test_only_answer_tokens_are_scored(parts, batch, monkeypatch):
    seen = []
    real = parts.policy.forward

    def forward(prompts, completion_ids, completion_mask, **rest):
        logprobs, entropy = real(prompts, completion_ids, completion_mask, **rest)
        logprobs.retain_grad()
        seen.append((completion_ids, completion_mask, logprobs))
        return logprobs, entropy

    monkeypatch.setattr(parts.policy, "forward", forward)
    learn(parts, batch)
    ((scored, mask, logprobs),) = seen
    ids, expected_mask = target_tokens(batch, parts.task, parts.tokenizer)
    assert torch.equal(scored, ids)
    assert torch.equal(mask, expected_mask)
    # d loss / d logprob is -1 / num_tokens on answer tokens and 0 elsewhere.
    torch.testing.assert_close(
        logprobs.grad,
        -expected_mask.to(logprobs.dtype) / int(expected_mask.sum()),
        rtol=1e-6,
        atol=0,
    )


def test_micro_batches_give_the_gradient_of_the_full_step(parts, batch):
    whole, expected = learn(parts, batch, micro_batch_size=3)
    for size in (2, 1):
        logged, gradients = learn(parts, batch, micro_batch_size=size)
        assert float(logged["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)
        assert float(logged["entropy"]) == pytest.approx(float(whole["entropy"]), rel=1e-6)
        for name, gradient in expected.items():
            scale = gradient.abs().max().clamp_min(1e-12)
            assert float((gradients[name] - gradient).abs().max() / scale) < 1e-6, name


def test_training_lowers_the_loss(tiny_checkpoint, tiny_world, tmp_path):
    fresh = make_parts(tiny_checkpoint, tiny_world)
    module = make_module(fresh, lr=3e-3, max_grad_norm=1.0)
    losses = []
    module._log_step = lambda output: losses.append(float(output.metrics["loss"]))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=6,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader([fresh.batch(3)] * 6, batch_size=None))
    assert len(losses) == 6
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("is_on", [True, False])
def test_gradient_checkpointing_is_used_only_if_enabled(
    tiny_checkpoint, tiny_world, tmp_path, is_on
):
    fresh = make_parts(tiny_checkpoint, tiny_world)
    calls = []
    if is_on:
        fresh.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in fresh.policy.model.model.language_model.layers:
        real = getattr(layer, "_gradient_checkpointing_func", None)
        layer._gradient_checkpointing_func = lambda *a, real=real, **k: (
            calls.append(1) or real(*a, **k)
        )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    module = make_module(fresh)
    module._log_step = lambda output: None
    trainer.fit(module, torch.utils.data.DataLoader([fresh.batch(1)], batch_size=None))
    assert len(calls) == (len(fresh.policy.model.model.language_model.layers) if is_on else 0)


def test_micro_batch_size_below_1_is_refused(parts):
    with pytest.raises(ValueError, match=r"objective.micro_batch_size: expected at least 1, got 0"):
        make_module(parts, micro_batch_size=0)
