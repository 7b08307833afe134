"""The preflight passes where sampler and trainer agree and stops where they do not."""

from dataclasses import replace

import pytest
from parts import make_parts, make_rollout

from tvg.rollout.hf import HFRollout
from tvg.training.preflight import Preflight, PreflightError


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world)


def run(parts, rollout, *, max_abs_diff=1e-4):
    preflight = Preflight(
        num_prompts=2, num_completions=2, max_abs_diff=max_abs_diff, half_precision_factor=500
    )
    return preflight.run(
        policy=parts.policy,
        rollout=rollout,
        tokenizer=parts.tokenizer,
        prompts=parts.batch(3),
        seed=0,
    )


def test_agreement_to_1e_4_in_float32(parts):
    assert run(parts, make_rollout()) <= 1e-4


class RateDropped(HFRollout):
    """An engine that samples at positions of another frame rate than it was given."""

    def generate(self, *, policy, tokenizer, prompts, group_size, seed):
        wrong = replace(prompts, sampled_fps=prompts.sampled_fps * 0 + 24.0)
        out = super().generate(
            policy=policy, tokenizer=tokenizer, prompts=wrong, group_size=group_size, seed=seed
        )
        return replace(out, prompts=prompts)


class Truncating(HFRollout):
    """An engine that allows tokens which the trainer gives no probability."""

    def generate(self, *, policy, **rest):
        saved = policy.suppressed_ids
        policy.suppressed_ids = saved[:0]
        try:
            return super().generate(policy=policy, **rest)
        finally:
            policy.suppressed_ids = saved


@pytest.mark.parametrize("engine", [RateDropped, Truncating])
def test_a_sampler_that_differs_is_caught(parts, engine):
    settings = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "prompts_per_call": None}
    with pytest.raises(PreflightError, match=r"disagree.*frame rate") as caught:
        run(parts, engine(max_new_tokens=8, **settings))
    assert any(parts.dataset[i].example.qid in str(caught.value) for i in range(2))
