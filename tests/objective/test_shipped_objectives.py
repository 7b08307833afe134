"""Tests that the options of conf/objective behave as their comments state."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tvg.config import CONF_DIR, build, compose

OBJECTIVES = sorted(
    path.stem
    for path in (CONF_DIR / "objective").glob("*.yaml")
    if "_policy_gradient" in path.read_text() and not path.stem.startswith("_")
)
LENGTHS = torch.tensor([5, 2, 3, 5])
MASK = (torch.arange(5) < LENGTHS[:, None]).long()
FINISHED = LENGTHS < 5
ADVANTAGES = torch.tensor([1.0, -0.5, 0.25, -1.0], dtype=torch.float64)


@cache
def objective(name: str) -> Any:
    return compose("train", [f"objective={name}", "rollout.max_new_tokens=9"]).cfg.objective


def gradient(name: str, *, moved: float = 0.0) -> Tensor:
    """Returns the gradient by log-probs whose ratios to the old ones alternate: exp(±moved)."""
    loss = build(objective(name).loss)
    logprobs = torch.full((4, 5), -1.0, dtype=torch.float64, requires_grad=True)
    turns = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=torch.float64) * moved
    mask = loss.loss_mask(MASK, FINISHED)
    loss(
        logprobs=logprobs,
        old_logprobs=logprobs.detach() - turns,
        ref_logprobs=None,
        sampler_logprobs=None,
        policy_old_logprobs=None,
        entropy=torch.zeros(4, 5),
        advantages=ADVANTAGES,
        loss_mask=mask,
        denominator=loss.denominator(mask),
        num_tokens=mask.sum(),
    ).loss.backward()
    assert logprobs.grad is not None
    return logprobs.grad


DENOMINATORS = {  # for finished completions of 2 and 3 tokens, and two truncated ones of 5
    "grpo": 4,
    "grpo_token_mean": 15,
    "dr_grpo": 4 * 9,
    "dapo": 5,
    "gspo": 4,
    "cispo": 15,
    "bnpo": 15,
}


def test_every_shipped_objective_is_listed() -> None:
    assert set(OBJECTIVES) == set(DENOMINATORS)


@pytest.mark.parametrize("name", DENOMINATORS)
def test_denominators_match_the_config_files(name: str) -> None:
    assert "ivided by" in (CONF_DIR / "objective" / f"{name}.yaml").read_text()
    loss = build(objective(name).loss)
    assert loss.denominator(loss.loss_mask(MASK, FINISHED)) == DENOMINATORS[name]
    # If each rollout is used once, the gradient is -A divided by the denominator, and for
    # sequence_mean also by the length of the completion.
    own = LENGTHS[:, None] if loss.reduction == "sequence_mean" else 1
    expected = -ADVANTAGES[:, None] * loss.loss_mask(MASK, FINISHED) / own / DENOMINATORS[name]
    torch.testing.assert_close(gradient(name), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "twin"), [("gspo", "grpo"), ("cispo", "grpo_token_mean")])
def test_gspo_and_cispo_equal_their_twins_with_one_update(name: str, twin: str) -> None:
    torch.testing.assert_close(gradient(name), gradient(twin), rtol=0, atol=1e-12)
    assert (gradient(name, moved=0.5) - gradient(twin, moved=0.5)).abs().max() > 1e-3


def test_bnpo_is_the_token_mean() -> None:
    ours, twin = gradient("bnpo", moved=0.5), gradient("grpo_token_mean", moved=0.5)
    torch.testing.assert_close(ours, twin, rtol=0, atol=0)


def test_advantage_scales_of_shipped_objectives() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0])
    for name in DENOMINATORS:
        found = build(objective(name).advantage)(rewards, group_size=3)
        scale = 1 if name == "dr_grpo" else 1 + 1e-4
        torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 1.0]) / scale)
