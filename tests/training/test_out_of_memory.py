"""Tests of out-of-memory errors: their message, and steps that are repeated in smaller passes."""

from __future__ import annotations

import pytest
import torch
from helpers.grpo_module import learn, make_module, sample
from helpers.tiny_policy import make_parts

from tvg.training.out_of_memory import KEYS, StageOutOfMemoryError, naming_stage

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    made.policy.double()
    return made


@pytest.fixture(scope="module")
def rollout(parts):
    return sample(parts, num=3)


def limit_passes(module, monkeypatch, *, completions):
    """Lets passes of more completions run out of memory, after their forward pass."""
    logprobs, sizes = type(module.scorer).logprobs, []

    def limited(self, policy, rollout):
        found = logprobs(self, policy, rollout)
        sizes.append(len(rollout.completion_ids))
        if torch.is_grad_enabled() and sizes[-1] > completions:
            raise torch.OutOfMemoryError(FULL)
        return found

    monkeypatch.setattr(type(module.scorer), "logprobs", limited)
    module.discard_gradients = module.policy.zero_grad  # no optimizer outside of a fit
    return sizes


def gradients(module):
    return {n: p.grad.clone() for n, p in module.policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", KEYS)
def test_message_names_stage_and_keys(stage):
    with (
        pytest.raises(StageOutOfMemoryError) as caught,
        naming_stage(stage, rank=3, step=11),
    ):
        raise torch.OutOfMemoryError(FULL)
    message = str(caught.value)
    assert message.startswith(
        f"out of memory in the stage {stage!r} of step 12, on rank 3: CUDA out of memory. Tried to "
        "allocate 2.00 GiB."
    )
    assert "GPU 0 has" not in message
    for key in KEYS[stage]:
        assert key in message


def test_cpu_allocations_are_recognised():
    text = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"
    with pytest.raises(StageOutOfMemoryError, match="stage 'policy'"):  # noqa: SIM117
        with naming_stage("policy", rank=0, step=0):
            raise RuntimeError(text)


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="sizes differ") as caught:  # noqa: SIM117
        with naming_stage("policy", rank=0, step=0):
            raise RuntimeError("sizes differ")
    assert not isinstance(caught.value, StageOutOfMemoryError)


@pytest.mark.parametrize(("completions", "smallest"), [(4, (1, None)), (2, (1, 2)), (1, (1, 1))])
def test_repeated_step_has_the_same_gradient(
    parts, rollout, monkeypatch, caplog, completions, smallest
):
    advantages = torch.linspace(-1, 1, 12, dtype=torch.float64)
    module = make_module(parts, kl_coef=0.1, micro_batch_size=3)
    module.policy.zero_grad()
    expected, whole = learn(module, rollout, advantages), gradients(module)
    module = make_module(parts, kl_coef=0.1, micro_batch_size=3)
    module.retry_on_oom = True
    sizes = limit_passes(module, monkeypatch, completions=completions)
    module.policy.zero_grad()
    totals = learn(module, rollout, advantages)
    assert max(sizes) == 12
    assert (module.scorer.micro_batch_size, module.scorer.micro_batch_completions) == smallest
    for name in expected:
        torch.testing.assert_close(totals[name], expected[name], rtol=1e-6, atol=1e-9)
    for name, gradient in gradients(module).items():
        scale = whole[name].abs().max().clamp_min(1e-12)
        assert float((gradient - whole[name]).abs().max() / scale) < 1e-6, name
    assert (
        "The step is repeated, and training continues, with objective.micro_batch_" in caplog.text
    )


def test_step_that_never_fits_is_an_error(parts, rollout, monkeypatch):
    module = make_module(parts, micro_batch_size=3)
    module.retry_on_oom = True
    limit_passes(module, monkeypatch, completions=0)
    with pytest.raises(StageOutOfMemoryError, match="stage 'policy' of step 1"):
        learn(module, rollout, torch.zeros(12, dtype=torch.float64))


def test_nothing_is_repeated_by_default(parts, rollout, monkeypatch):
    module = make_module(parts, micro_batch_size=3)
    sizes = limit_passes(module, monkeypatch, completions=1)
    with pytest.raises(StageOutOfMemoryError, match=r"objective\.micro_batch_size, objective\."):
        learn(module, rollout, torch.zeros(12, dtype=torch.float64))
    assert sizes == [12]
