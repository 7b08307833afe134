"""Tests of attention kernels against a softmax in float64, forward and backward."""

import pytest
import torch

from tvg.model import attention_kernels
from tvg.model.attention_kernels import Attended, attend, attend_backward

SCALE = 0.3
# Largest allowed difference between numbers of order 1, by the dtype of the states.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 6e-2}
HEADS = [(4, 4), (4, 2), (6, 1)]  # query heads, key heads


@pytest.fixture(params=["cpu", "plain"])
def kernel(request, monkeypatch):
    monkeypatch.setattr(attention_kernels, "_kernel", lambda query: request.param)
    monkeypatch.setattr(attention_kernels, "CHUNK_QUERIES", 3)  # most tests need several chunks
    return request.param


def states(num_heads, num_key_heads, *, asking=5, keys=5, seed=0):
    """Returns query, key, value and the gradient of the output, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, num_heads, asking, 8), *[(2, num_key_heads, keys, 8)] * 2]
    shapes.append((2, num_heads, asking, 8))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def written_out(query, key, value, is_causal):
    """Returns output and log-sum-exp, computed for each query over its visible keys."""
    repeats = query.shape[1] // key.shape[1]
    outputs, sums = [], []
    for place in range(query.shape[2]):
        seen = place + 1 if is_causal else key.shape[2]
        heads, sums_of_heads = [], []
        for head in range(query.shape[1]):
            mine, of_values = (x[:, head // repeats, :seen] for x in (key, value))
            scores = (mine * query[:, head, place, None]).sum(-1) * SCALE
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            heads.append((weights[..., None] * of_values).sum(1))
            sums_of_heads.append(scores.exp().sum(-1).log())
        outputs.append(torch.stack(heads, dim=1))
        sums.append(torch.stack(sums_of_heads, dim=1))
    return torch.stack(outputs, dim=2), torch.stack(sums, dim=2)


def expected_of(query, key, value, grad, is_causal):
    """Returns output, log-sum-exp and the three gradients by autograd through `written_out`."""
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    out, lse = written_out(*leaves, is_causal)
    return (out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, grad))


def assert_close(got, expected, dtype):
    for one, other in zip(got, expected, strict=True):
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("asking", "keys", "is_causal"), [(5, 5, True), (5, 5, False), (3, 7, 0)])
def test_a_call_equals_the_softmax_and_its_gradient(kernel, dtype, heads, asking, keys, is_causal):
    # Inputs are rounded first, so that only the kernel's rounding is measured.
    query, key, value, grad = (x.to(dtype) for x in states(*heads, asking=asking, keys=keys))
    settings = {"is_causal": bool(is_causal), "scale": SCALE}
    got = attend(query, key, value, **settings)
    assert got.out.dtype == dtype
    assert got.lse.dtype == torch.promote_types(dtype, torch.float32)
    assert got.out.shape == query.shape
    assert got.lse.shape == query.shape[:3]
    gradients = attend_backward(grad, got, query, key, value, **settings)
    assert [x.dtype for x in gradients] == [dtype] * 3
    expected = expected_of(*(x.double() for x in (query, key, value, grad)), bool(is_causal))
    assert_close((got.out, got.lse, *gradients), expected, dtype)


@pytest.mark.parametrize("heads", HEADS)
def test_joined_blocks_have_the_exact_gradient(kernel, heads):
    """Joins the outputs for two blocks of keys by log-sum-exp."""
    query, key, value, grad = states(*heads, asking=4, keys=9)
    blocks = [(key[:, :, :6], value[:, :, :6]), (key[:, :, 6:], value[:, :, 6:])]
    settings = {"is_causal": False, "scale": SCALE}
    attended = [attend(query, *block, **settings) for block in blocks]
    lse = torch.logaddexp(attended[0].lse, attended[1].lse)
    out = sum(part.out * (part.lse - lse).exp()[..., None] for part in attended)
    shares = [
        attend_backward(grad, Attended(out, lse, part.state), query, *block, **settings)
        for part, block in zip(attended, blocks, strict=True)
    ]
    joined = (
        out,
        lse,
        shares[0][0] + shares[1][0],
        torch.cat([shares[0][1], shares[1][1]], dim=2),
        torch.cat([shares[0][2], shares[1][2]], dim=2),
    )
    assert_close(joined, expected_of(query, key, value, grad, False), torch.float64)


def test_a_prefix_and_a_causal_block_equal_causal_attention(kernel):
    """A completion attends to the complete prompt and causally to itself."""
    query, key, value, grad = states(4, 2, asking=7, keys=7)
    mine = query[:, :, 3:], grad[:, :, 3:]
    settings = [{"is_causal": False, "scale": SCALE}, {"is_causal": True, "scale": SCALE}]
    blocks = [(key[:, :, :3], value[:, :, :3]), (key[:, :, 3:], value[:, :, 3:])]
    attended = [attend(mine[0], *b, **s) for b, s in zip(blocks, settings, strict=True)]
    lse = torch.logaddexp(attended[0].lse, attended[1].lse)
    out = sum(part.out * (part.lse - lse).exp()[..., None] for part in attended)
    shares = [
        attend_backward(mine[1], Attended(out, lse, p.state), mine[0], *b, **s)
        for p, b, s in zip(attended, blocks, settings, strict=True)
    ]
    grad[:, :, :3] = 0  # the outputs of the first three queries are not used
    whole = expected_of(query, key, value, grad, True)
    got = (
        out,
        lse,
        shares[0][0] + shares[1][0],
        torch.cat([shares[0][1], shares[1][1]], dim=2),
        torch.cat([shares[0][2], shares[1][2]], dim=2),
    )
    expected = (*(x[:, :, 3:] for x in whole[:3]), *whole[3:])
    assert_close(got, expected, torch.float64)


def test_large_scores_do_not_overflow(kernel):
    query, key, value, grad = (x.float() for x in states(4, 2))
    settings = {"is_causal": True, "scale": 1e3}
    got = attend(query, key, value, **settings)
    gradients = attend_backward(grad, got, query, key, value, **settings)
    assert all(torch.isfinite(x).all() for x in (got.out, got.lse, *gradients))


@pytest.mark.parametrize(
    ("device", "dtype", "head_size", "capability", "expected"),
    [
        ("cpu", torch.bfloat16, 128, None, "cpu"),
        ("cpu", torch.float64, 128, None, "cpu"),
        ("cuda", torch.bfloat16, 128, (9, 0), "cuda"),
        ("cuda", torch.float16, 128, (8, 0), "cuda"),
        ("cuda", torch.float16, 128, (7, 5), "plain"),
        ("cuda", torch.bfloat16, 12, (9, 0), "plain"),
        ("cuda", torch.bfloat16, 264, (9, 0), "plain"),
        ("cuda", torch.float32, 128, (9, 0), "plain"),
        ("cuda", torch.float64, 128, (9, 0), "plain"),
    ],
)
def test_the_kernel_is_chosen_by_device_dtype_and_head_size(
    device, dtype, head_size, capability, expected, monkeypatch
):
    class Query:
        pass

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query = Query()
    query.device, query.dtype, query.shape = torch.device(device), dtype, (1, 2, 3, head_size)
    assert attention_kernels._kernel(query) == expected
