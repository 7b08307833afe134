"""Tests of parameter groups: weight decay on matrices only, and learning rates per component."""

import functools

import pytest
import torch
from helpers.tiny_lora import make_lora_parts
from helpers.tiny_policy import make_parts

from tvg.training.parameter_groups import parameter_groups
from tvg.training.schedule import warmup_schedule

NONE = {"vision": None, "merger": None, "language": None, "adapter": None}


@pytest.fixture(scope="module")
def model(tiny_checkpoint, tiny_world):
    return make_parts(tiny_checkpoint, tiny_world).policy.model


def names(model, group):
    name_of = {id(p): name for name, p in model.named_parameters()}
    return [name_of[id(p)] for p in group["params"]]


def part(name):
    if ".visual.merger." in name:
        return "merger"
    return "vision" if ".visual." in name else "language"


def test_only_matrices_have_weight_decay(model):
    matrices, rest = parameter_groups(model, NONE)
    assert parameter_groups(model, {}) == [matrices, rest]
    assert set(matrices) == {"params"}
    assert rest["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert all(p.ndim < 2 for p in rest["params"])
    assert len(matrices["params"]) + len(rest["params"]) == len(list(model.parameters()))


def test_every_parameter_is_in_one_group_with_its_rate(model):
    rates = {**NONE, "vision": 1e-7, "merger": 3e-5}
    groups = parameter_groups(model, rates)
    found = {name: group.get("lr") for group in groups for name in names(model, group)}
    assert found == {name: rates[part(name)] for name, _ in model.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(found)
    assert all(
        group.get("weight_decay") == (None if p.ndim >= 2 else 0.0)
        for group in groups
        for p in group["params"]
    )
    assert "lr" not in groups[0]  # uses the optimizer's rate, which is logged
    assert {part(name) for name in names(model, groups[0])} == {"language"}


def test_components_with_equal_rates_share_groups(model):
    assert len(parameter_groups(model, {**NONE, "vision": 1e-5, "merger": 1e-5})) == 4


def test_learning_rate_of_zero_is_valid(model):
    groups = parameter_groups(model, {**NONE, "language": 0.0})
    assert {group.get("lr") for group in groups} == {None, 0.0}


def test_the_schedule_scales_every_rate(model):
    groups = parameter_groups(model, {**NONE, "vision": 2e-4})
    optimizer = torch.optim.SGD(groups, lr=1e-3)
    schedule = warmup_schedule(optimizer, 4, name="linear", warmup_steps=0)
    before = [group["lr"] for group in optimizer.param_groups]
    assert set(before) == {1e-3, 2e-4}
    optimizer.step()
    schedule.step()
    after = [group["lr"] for group in optimizer.param_groups]
    assert after == pytest.approx([rate * after[0] / before[0] for rate in before], rel=1e-12)
    assert after[0] < before[0]


def test_adapters_and_full_components_have_separate_rates(tiny_checkpoint, tiny_world):
    made = make_lora_parts(tiny_checkpoint, tiny_world, full_components=["merger"])
    groups = parameter_groups(made.policy.model, {**NONE, "adapter": 1e-4, "merger": 1e-6})
    for group in groups:
        for name in names(made.policy.model, group):
            assert group["lr"] == (1e-4 if ".lora_" in name else 1e-6), name
    (adapters,) = parameter_groups(
        make_lora_parts(tiny_checkpoint, tiny_world).policy.model, NONE
    )  # all adapters are matrices
    assert "lr" not in adapters


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"eyes": None}, r"^objective.component_lr: expected any of vision, .*adapter, got 'eyes'"),
        (
            {"vision": -1.0},
            r"^objective.component_lr.vision: expected at least 0, .* got -1.0",
        ),
        (
            {"adapter": 1e-4},
            r"^objective.component_lr.adapter: 0.0001 .* that is not trained",
        ),
    ],
)
def test_invalid_rates_are_refused(model, rates, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(model, rates)


def test_rate_of_a_frozen_component_is_refused(tiny_checkpoint, tiny_world):
    made = make_lora_parts(tiny_checkpoint, tiny_world)
    with pytest.raises(ValueError, match=r"^objective.component_lr.language: .* not trained"):
        parameter_groups(made.policy.model, {"language": 1e-6})


def test_step_updates_each_component_with_its_rate(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    make = functools.partial(torch.optim.SGD, lr=0.5)
    optimizer = make(parameter_groups(made.policy.model, {"vision": 0.0, "merger": 0.25}))
    before = {name: p.detach().clone() for name, p in made.policy.model.named_parameters()}
    for parameter in made.policy.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {"vision": 0.0, "merger": 0.25, "language": 0.5}
    for name, parameter in made.policy.model.named_parameters():
        step = before[name] - parameter.detach()
        torch.testing.assert_close(
            step, torch.full_like(step, moved[part(name)]), atol=1e-6, rtol=0
        )
