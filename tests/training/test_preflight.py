"""Tests that the preflight passes if sampler and trainer agree and stops if they differ."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny_policy import make_parts, make_rollout

from tvg.rollout.hf import HFEngine
from tvg.training.preflight import Preflight, PreflightError


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world)


def run(parts, rollout):
    preflight = Preflight(num_prompts=2, num_completions=2, max_abs_diff=1e-4, half_mean_diff=0.05)
    rollout.setup(policy=parts.policy, tokenizer=parts.tokenizer)
    return preflight.run(
        policy=parts.policy,
        rollout=rollout,
        prompts=parts.batch(3),
        seed=0,
    )


def test_float32_logprobs_agree_to_1e_4(parts):
    assert run(parts, make_rollout()) <= 1e-4


class RateDropped(HFEngine):
    """Engine whose position ids use a wrong frame rate."""

    def generate(self, prompts, *, group_size, seed):
        wrong = replace(prompts, sampled_fps=prompts.sampled_fps * 0 + 24.0)
        out = super().generate(wrong, group_size=group_size, seed=seed)
        return replace(out, prompts=prompts)


class Unsuppressed(HFEngine):
    """Engine that may sample tokens to which the trainer assigns probability 0."""

    def generate(self, prompts, **rest):
        saved = self._policy.suppressed_ids
        self._policy.suppressed_ids = saved[:0]
        try:
            return super().generate(prompts, **rest)
        finally:
            self._policy.suppressed_ids = saved


def test_half_precision_is_judged_by_its_mean_difference(parts):
    with torch.autocast("cpu", torch.bfloat16):
        found = run(parts, make_rollout())
    assert 1e-4 < found <= 0.05


@pytest.mark.parametrize(
    ("engine", "half"), [(RateDropped, False), (RateDropped, True), (Unsuppressed, False)]
)
def test_sampler_that_disagrees_is_refused(parts, engine, half):
    settings = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "prompts_per_call": None}
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with autocast, pytest.raises(PreflightError, match=r"disagree.*frame rate") as caught:
        run(parts, engine(max_new_tokens=8, **settings))
    assert any(parts.dataset[i].example.qid in str(caught.value) for i in range(2))
