"""Tests of head products whose inputs are rounded to half precision and summed in float32."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_policy import make_parts, make_rollout

from tvg.core import logprobs as module
from tvg.core.logprobs import (
    head_rounded_once,
    rounded_dtype,
    set_head_products,
    token_logits,
    token_logprobs,
)
from tvg.rollout import hf
from tvg.rollout.hf import HFEngine
from tvg.rollout.shared_prefix import SharedPrefixEngine
from tvg.training.preflight import Preflight

NUM_TOKENS, WIDTH, VOCABULARY = 23, 64, 37
SUPPRESSED = torch.tensor([0, 2])


@pytest.fixture(autouse=True)
def default_setting():
    yield
    set_head_products("auto")


def example(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator) / 4
    token_ids = torch.randint(3, VOCABULARY, (NUM_TOKENS,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), token_ids


def run(hidden, weight, token_ids, **settings):
    """Returns log-probabilities, entropy and both gradients."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprobs, entropy = token_logprobs(
        hidden, weight, token_ids, suppressed_ids=SUPPRESSED, chunk_tokens=7, **settings
    )
    spread = torch.linspace(-1, 2, len(logprobs))
    (logprobs * spread + 0.3 * entropy * spread.flip(0)).sum().backward()
    return logprobs.detach(), entropy.detach(), hidden.grad, weight.grad


def rounded(tensor):
    return tensor.bfloat16().double()


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_autocast_values_equal_products_of_rounded_inputs():
    hidden, weight, token_ids = example()
    set_head_products("half")
    with autocast():
        logprobs, entropy, *_ = run(hidden, weight, token_ids, temperature=0.7)
    set_head_products("full")
    exact = run(rounded(hidden), rounded(weight), token_ids, temperature=0.7)
    torch.testing.assert_close(logprobs.double(), exact[0], rtol=0, atol=5e-6)
    torch.testing.assert_close(entropy.double(), exact[1], rtol=0, atol=5e-6)


def test_gradients_are_those_of_rounded_factors():
    hidden, weight, token_ids = example()
    set_head_products("half")
    with autocast():
        *_, grad_hidden, grad_weight = run(hidden, weight, token_ids)
    assert grad_hidden.dtype == grad_weight.dtype == torch.float32

    logits = (rounded(hidden) @ rounded(weight).T).index_fill(1, SUPPRESSED, -torch.inf)
    logits.requires_grad_()
    logps = logits.log_softmax(-1)
    kept = [v for v in range(VOCABULARY) if v not in SUPPRESSED.tolist()]
    entropy = -(logps[:, kept].exp() * logps[:, kept]).sum(1)
    spread = torch.linspace(-1, 2, NUM_TOKENS)
    picked = logps.gather(1, token_ids[:, None])[:, 0]
    (picked * spread + 0.3 * entropy * spread.flip(0)).sum().backward()
    grad_logits = logits.grad.nan_to_num(0.0)
    # A rounded factor has a relative error of at most 2^-8; both factors of the sum are rounded.
    bound = grad_logits.abs() @ rounded(weight).abs() * 2**-8
    assert ((grad_hidden - grad_logits @ rounded(weight)).abs() <= bound + 1e-6).all()
    bound = grad_logits.T.abs() @ rounded(hidden).abs() * 2**-8
    assert ((grad_weight - grad_logits.T @ rounded(hidden)).abs() <= bound + 1e-6).all()
    # The sums themselves are float32: with these rounded factors, they are exact to 1e-5.
    factors = rounded(grad_logits)
    torch.testing.assert_close(grad_hidden.double(), factors @ rounded(weight), rtol=0, atol=2e-3)


def test_logits_of_bfloat16_weights_are_not_rounded():
    hidden, weight, _ = example(torch.bfloat16)
    exact = hidden.double() @ weight.double().T
    set_head_products("half")
    logits = token_logits(hidden, weight, temperature=1.0, suppressed_ids=None)
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-5)
    set_head_products("full")
    logits = token_logits(hidden, weight, temperature=1.0, suppressed_ids=None)
    assert (logits.double() - exact).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_default_on_cpus_keeps_the_old_arithmetic(dtype, is_autocast):
    hidden, weight, token_ids = example(dtype)
    found = {}
    for kind in ("auto", "full"):
        set_head_products(kind)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            found[kind] = run(hidden, weight, token_ids)
    expected = (hidden @ weight.T).float().index_fill(1, SUPPRESSED, -torch.inf).log_softmax(-1)
    expected = expected.gather(1, token_ids[:, None])[:, 0]
    torch.testing.assert_close(found["auto"][0], expected, rtol=0, atol=1e-6)
    assert all(map(torch.equal, found["auto"], found["full"]))


def test_products_are_rounded_only_in_half_precision():
    hidden, weight, _ = example()
    set_head_products("half")
    assert rounded_dtype(hidden, weight) is None
    assert rounded_dtype(hidden.half(), weight) == torch.float16
    assert rounded_dtype(hidden, weight.bfloat16()) == torch.bfloat16
    with autocast():
        assert rounded_dtype(hidden, weight) == torch.bfloat16
        assert rounded_dtype(hidden.double(), weight.double()) is None
    gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=torch.bfloat16)
    assert rounded_dtype(gpu, weight) is not None
    set_head_products("auto")
    assert rounded_dtype(gpu, weight) is not None
    assert rounded_dtype(hidden.bfloat16(), weight.bfloat16()) is None
    set_head_products("full")
    assert rounded_dtype(gpu, weight) is None


def test_gpu_products_request_float32_output(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "mm", lambda *args, **options: calls.append((args, options)))
    left = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    module._product(left, "right", has_float32_sums=True)
    assert calls == [((left, "right"), {"out_dtype": torch.float32})]


def test_rounded_head_is_kept_while_sampling(monkeypatch):
    hidden, weight, _ = example()
    set_head_products("half")
    heads = []
    inner = module._logits
    monkeypatch.setattr(
        module, "_logits", lambda *args, **rest: heads.append(args[1]) or inner(*args, **rest)
    )

    def logits():
        with autocast():
            return token_logits(hidden, weight, temperature=1.0, suppressed_ids=None)

    first = logits()
    with head_rounded_once():
        assert torch.equal(logits(), first)
        assert torch.equal(logits(), first)
        weight = weight * 2
        assert torch.equal(logits(), first * 2)
    logits()
    assert [one is other for one, other in itertools.pairwise(heads)] == [
        False,
        True,
        False,
        False,
    ]
    assert module._kept is None


def test_unknown_arithmetic_is_refused():
    with pytest.raises(ValueError, match=r"policy\.head_products: expected one of auto.*'fp8'"):
        set_head_products("fp8")


@pytest.mark.parametrize("engine", [SharedPrefixEngine, HFEngine])
def test_sampler_and_trainer_round_alike(tiny_checkpoint, tiny_world, monkeypatch, engine):
    """The states are float32 here, so a different head product would be the only difference."""
    for where in (module, hf):
        monkeypatch.setattr(where, "rounded_dtype", lambda hidden, weight: torch.bfloat16)
    parts = make_parts(tiny_checkpoint, tiny_world)
    rollout = make_rollout(engine)
    rollout.setup(policy=parts.policy, tokenizer=parts.tokenizer)
    preflight = Preflight(num_prompts=2, num_completions=2, max_abs_diff=1e-4, half_mean_diff=0.05)
    prompts = parts.batch(2)
    assert preflight.run(policy=parts.policy, rollout=rollout, prompts=prompts, seed=0) <= 1e-4
