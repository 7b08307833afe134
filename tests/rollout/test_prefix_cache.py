"""Tests of attention during sampling: its precision, and that each weight is cast once."""

import pytest
import torch
from helpers.tiny_policy import make_parts

from tvg.model.packing import pack
from tvg.model.prefix_attention import attend_row
from tvg.rollout.in_process import _weights_cast_once
from tvg.rollout.prefix_cache import Decoding, Prefill

HEADS, KEY_HEADS, SIZE, LENGTH = 4, 2, 32, 256


@pytest.mark.parametrize("bias", [0.0, 50.0])
def test_attention_of_large_scores_is_as_exact_as_in_training(bias):
    """A common offset of queries and keys, as in some checkpoints, makes all scores large."""
    generator = torch.Generator().manual_seed(0)

    def states(heads: int, num: int, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(1, heads, num, SIZE, generator=generator) + mean).bfloat16()

    keys, values = states(KEY_HEADS, LENGTH + 1, bias**0.5), states(KEY_HEADS, LENGTH + 1)
    queries = states(HEADS, LENGTH + 1, bias**0.5)
    mask = torch.ones(1, LENGTH, dtype=torch.int64)
    scale = SIZE**-0.5
    prefill = Prefill(pack(mask, mask[:, :0], group_size=1), mask)
    prefill.attend(0, *(x[:, :, :LENGTH] for x in (queries, keys, values)), scale)
    decoding = Decoding(prefill, group_size=1, max_steps=1)
    got = decoding.attend(0, *(x[:, :, LENGTH:] for x in (queries, keys, values)), scale)
    row = pack(mask, torch.ones(1, 1, dtype=torch.int64), group_size=1)
    trained = attend_row(queries, keys, values, row, scale, is_last=False)[:, -1:]
    whole = pack(mask, torch.ones(1, 1, dtype=torch.int64), group_size=1)
    exact = attend_row(*(x.double() for x in (queries, keys, values)), whole, scale, is_last=False)
    error = float((got.double() - exact[:, -1:]).norm() / exact[:, -1:].norm())
    reference = float((trained.double() - exact[:, -1:]).norm() / exact[:, -1:].norm())
    assert error < 1.5 * reference + 1e-3, (error, reference)


def test_autocast_casts_each_weight_once(tiny_checkpoint, tiny_world):
    parts = make_parts(tiny_checkpoint, tiny_world)
    weight = parts.policy.model.model.language_model.layers[0].mlp.up_proj.weight
    states = torch.randn(2, weight.shape[1])
    casts = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "_to_copy" in str(function) and args[0].shape == weight.shape:
                casts.append(function)
            return function(*args, **(kwargs or {}))

    lightnings = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    with lightnings, torch.no_grad(), Watch(), _weights_cast_once(torch.device("cpu")):
        for _ in range(5):
            torch.nn.functional.linear(states, weight)
    assert len(casts) == 1
