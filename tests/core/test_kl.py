"""Tests of the KL estimators with hand-computed numbers and the exact divergence."""

import math

import pytest
import torch
from torch import Tensor

from tvg.core.kl import k1, k2, k3


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


LOG2 = math.log(2)
# ref / pol = 1, 1/2, 2; with x = log(ref / pol) = 0, -log 2, log 2.
# Per estimator: the values, and the gradient with respect to the policy's log-probs.
BY_HAND = {
    k1: ([0.0, LOG2, -LOG2], [1.0, 1.0, 1.0]),  # -x; 1
    k2: ([0.0, LOG2**2 / 2, LOG2**2 / 2], [0.0, LOG2, -LOG2]),  # x^2 / 2; -x
    k3: ([0.0, 0.5 + LOG2 - 1, 2 - LOG2 - 1], [0.0, 0.5, -1.0]),  # e^x - x - 1; 1 - e^x
}


@pytest.mark.parametrize("estimator", BY_HAND)
def test_estimators_by_hand(estimator) -> None:
    policy = logs([0.5, 0.5, 0.25]).requires_grad_()
    reference = logs([0.5, 0.25, 0.5]).requires_grad_()
    kl = estimator(policy, reference)
    values, gradient = BY_HAND[estimator]
    torch.testing.assert_close(kl, torch.tensor([values]).double(), rtol=0, atol=1e-7)
    kl.sum().backward()
    torch.testing.assert_close(policy.grad, torch.tensor([gradient]).double(), rtol=0, atol=1e-7)
    assert reference.grad is None


@pytest.mark.parametrize("estimator", [k2, k3])
def test_k2_and_k3_are_never_negative(estimator) -> None:
    policy = torch.full((1, 4), -1.0)
    reference = policy + torch.tensor([1e-4, -1e-4, 3e-5, 1e-3])
    kl = estimator(policy, reference)
    assert kl.ge(0).all()
    log_ratio = (reference - policy).double()
    torch.testing.assert_close(kl.double(), log_ratio**2 / 2, rtol=5e-2, atol=1e-12)


def exact_kl(a: Tensor, b: Tensor) -> Tensor:
    """Returns KL(a || b) of two vectors of log-probabilities."""
    return (a.exp() * (a - b)).sum()


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased(estimator) -> None:
    policy, reference = logs([0.5, 0.3, 0.2]), logs([0.2, 0.2, 0.6])
    mean = (policy.exp() * estimator(policy, reference)).sum()
    torch.testing.assert_close(mean, exact_kl(policy, reference))


def test_k2_approximates_the_kl_of_similar_policies() -> None:
    policy, reference = logs([0.5, 0.3, 0.2]), logs([0.48, 0.31, 0.21])
    mean = (policy.exp() * k2(policy, reference)).sum()
    torch.testing.assert_close(mean, exact_kl(policy, reference), rtol=0.05, atol=0)
    assert mean != exact_kl(policy, reference)


def test_gradient_of_each_estimator_as_a_loss() -> None:
    logits = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    reference = logs([0.2, 0.2, 0.6])[0]

    def gradient_of(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, [logits])[0]

    def as_loss(estimator) -> Tensor:
        """Returns the gradient with respect to the logits if the estimator is the loss.

        The gradient is the mean over sampled tokens. No gradient flows through the sampling.
        """
        policy = logits.log_softmax(0)
        return gradient_of((policy.exp().detach() * estimator(policy, reference)).sum())

    nothing = torch.zeros(3).double()
    torch.testing.assert_close(as_loss(k1), nothing, rtol=0, atol=1e-12)
    kl_to_reference = gradient_of(exact_kl(logits.log_softmax(0), reference))
    torch.testing.assert_close(as_loss(k2), kl_to_reference, rtol=0, atol=1e-12)
    kl_from_reference = gradient_of(exact_kl(reference, logits.log_softmax(0)))
    torch.testing.assert_close(as_loss(k3), kl_from_reference, rtol=0, atol=1e-12)
