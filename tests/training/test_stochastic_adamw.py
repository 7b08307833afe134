"""Tests of AdamW with stochastic rounding: expectation, exact steps, seeds and resuming.

The tests with the fixture `library` also run without torchao, with a stand-in for its optimizer.
"""

import copy
import sys
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

MODULE = "tvg.training.stochastic_adamw"
STEP = 2.0**-7  # distance of neighbouring bfloat16 numbers in [1, 2)

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")


class StandIn(torch.optim.Optimizer):
    """Rounds up or down at random, like torchao's optimizer, and has tensors as learning rates."""

    def __init__(self, params, *, lr, betas, weight_decay, bf16_stochastic_round):
        assert isinstance(betas, tuple)
        assert bf16_stochastic_round
        super().__init__(params, {"lr": torch.tensor(lr), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", torch.tensor(0.0)) + 1
                p.add_(STEP * torch.randint(-1, 2, p.shape))


@pytest.fixture(params=["stand_in", pytest.param("torchao", marks=needs_torchao)])
def library(request, monkeypatch):
    """Returns the optimizer's module, with torchao or with a stand-in."""
    if request.param == "stand_in":
        fake = SimpleNamespace(AdamW8bit=StandIn)
        monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(optim=fake))
        monkeypatch.setitem(sys.modules, "torchao.optim", fake)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield import_module(MODULE)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)


def make(module, *, seed=0, lr=STEP / 4, size=(64, 1024), start=1.5):
    weight = torch.nn.Parameter(torch.full(size, start, dtype=torch.bfloat16))
    groups = [{"params": [weight]}]
    made = module.StochasticAdamW8bit(groups, lr=lr, betas=[0.9, 0.99], weight_decay=0.0, seed=seed)
    return weight, made


def run(weight, optimizer, steps, *, first=0):
    for number in range(first, first + steps):
        generator = torch.Generator().manual_seed(number)
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()


@needs_torchao
def test_rounding_is_exact_in_expectation():
    module = import_module(MODULE)
    weight, optimizer = make(module)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    # The first step of AdamW moves each weight by lr, a quarter of the distance to the next
    # bfloat16 number: a quarter of the weights move by that distance, the others stay.
    moved = (1.5 - weight.detach().float()) / STEP
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    deviation = (0.25 * 0.75 / weight.numel()) ** 0.5
    assert moved.mean().item() == pytest.approx(0.25, abs=4 * deviation)
    # Rounding to the nearest number loses the step.
    nearest = torch.nn.Parameter(torch.full_like(weight, 1.5))
    nearest.grad = torch.ones_like(nearest)
    torch.optim.AdamW([nearest], lr=STEP / 4, weight_decay=0.0).step()
    assert torch.equal(nearest, torch.full_like(nearest, 1.5))


@needs_torchao
def test_representable_step_equals_the_float32_step():
    weight, optimizer = make(import_module(MODULE), lr=2 * STEP)
    weight.grad = -torch.ones_like(weight)
    optimizer.step()
    exact = torch.nn.Parameter(torch.full(weight.shape, 1.5))
    exact.grad = -torch.ones_like(exact)
    torch.optim.AdamW([exact], lr=2 * STEP, weight_decay=0.0, eps=0.0).step()
    assert torch.equal(weight.float(), exact)
    assert weight[0, 0] == 1.5 + 2 * STEP


@needs_torchao
def test_float32_weights_are_not_rounded():
    module = import_module(MODULE)
    weight = torch.nn.Parameter(torch.full((64, 64), 1.5))
    optimizer = module.StochasticAdamW8bit(
        [{"params": [weight]}], lr=1e-6, betas=(0.9, 0.99), weight_decay=0.0, seed=0
    )
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (weight - (1.5 - 1e-6)).abs().max() < 2e-7


def test_seed_determines_the_rounding(library):
    found = []
    for seed in (1, 1, 2):
        weight, optimizer = make(library, seed=seed)
        torch.manual_seed(len(found))  # the global generator has no effect
        run(weight, optimizer, 2)
        found.append(weight.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_each_step_draws_other_bits(library):
    weight, optimizer = make(library)
    moves = []
    for _ in range(2):
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        moves.append(weight.detach() != before)
    assert not torch.equal(*moves)
    assert optimizer.num_steps == 2


def test_other_random_generators_are_not_affected(library):
    weight, optimizer = make(library)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(weight, optimizer, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_resumed_optimizer_continues_bit_for_bit(library, tmp_path):
    straight, optimizer = make(library, size=(16, 256))
    run(straight, optimizer, 4)
    first, optimizer = make(library, size=(16, 256))
    run(first, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    second, resumed = make(library, size=(16, 256))
    second.data.copy_(first.data)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(second, resumed, 2, first=2)
    assert torch.equal(second, straight)


def test_learning_rate_follows_a_schedule(library):
    _, optimizer = make(library, lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    schedule.step()
    assert float(optimizer.param_groups[0]["lr"]) == 0.5
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["lr"] = 0.25  # as a number
    optimizer.load_state_dict(state)
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
