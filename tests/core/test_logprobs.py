"""Tests of chunked token log-probs against a plain log-softmax over the complete vocabulary."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tvg.core.logprobs as logprobs_module
from tvg.core.logprobs import token_logprobs

NUM_TOKENS, WIDTH, VOCABULARY = 23, 8, 37


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    token_ids = torch.randint(3, VOCABULARY, (NUM_TOKENS,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), token_ids


def plain(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    temperature: float = 1.0,
    suppressed_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    logits = hidden @ weight.t() / temperature
    if suppressed_ids is not None:
        logits = logits.index_fill(1, suppressed_ids, -torch.inf)
    logprobs = logits.log_softmax(dim=-1)
    suppressed = [] if suppressed_ids is None else suppressed_ids.tolist()
    kept = logprobs[:, [v for v in range(len(weight)) if v not in suppressed]]
    entropy = -(kept.exp() * kept).sum(dim=1)
    return logprobs.gather(1, token_ids[:, None])[:, 0], entropy


def with_gradients(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    hidden: Tensor,
    weight: Tensor,
    entropy_coef: float = 0.0,
) -> list[Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprobs, entropy = function(hidden, weight)
    # Unequal weights per token, as in a loss with advantages and masks.
    spread = torch.linspace(-1, 2, len(logprobs), dtype=logprobs.dtype)
    loss = (logprobs * spread).sum()
    if entropy_coef:
        loss = loss + entropy_coef * (entropy * spread.flip(0)).sum()
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert entropy.requires_grad
    return [logprobs.detach(), entropy.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 22, 23, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("suppressed", [None, [0, 2]])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_values_and_gradients_equal_plain_log_softmax(
    chunk_tokens: int, temperature: float, suppressed: list[int] | None, entropy_coef: float
) -> None:
    hidden, weight, token_ids = example()
    ids = None if suppressed is None else torch.tensor(suppressed)
    ours = with_gradients(
        lambda h, w: token_logprobs(
            h,
            w,
            token_ids,
            temperature=temperature,
            suppressed_ids=ids,
            chunk_tokens=chunk_tokens,
        ),
        hidden,
        weight,
        entropy_coef,
    )
    theirs = with_gradients(
        lambda h, w: plain(h, w, token_ids, temperature, ids), hidden, weight, entropy_coef
    )
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_lower_precision_is_close_to_float64(dtype: torch.dtype, atol: float) -> None:
    hidden, weight, token_ids = example(dtype)
    ours = with_gradients(
        lambda h, w: token_logprobs(h, w, token_ids, chunk_tokens=5), hidden, weight
    )
    theirs = with_gradients(lambda h, w: plain(h, w, token_ids), hidden.double(), weight.double())
    assert [value.dtype for value in ours] == [torch.float32, torch.float32, dtype, dtype]
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.double(), their, rtol=0.02, atol=atol)


def test_only_the_head_product_is_in_half_precision() -> None:
    hidden, weight, token_ids = example(torch.bfloat16)
    logits = (hidden @ weight.t()).double()  # rounded to bfloat16
    expected = logits.log_softmax(dim=-1).gather(1, token_ids[:, None])[:, 0].float()
    logprobs, _ = token_logprobs(hidden, weight, token_ids)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=2e-6)


def test_autocast_does_not_lower_the_precision() -> None:
    hidden, weight, token_ids = example(torch.float32)
    expected = with_gradients(lambda h, w: token_logprobs(h, w, token_ids), hidden, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(lambda h, w: token_logprobs(h, w, token_ids), hidden, weight)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_suppressed_ids_have_no_probability_and_no_gradient() -> None:
    hidden, weight, token_ids = example()
    token_ids[4] = 2
    suppressed = torch.tensor([0, 2])
    weight.requires_grad_()
    logprobs, entropy = token_logprobs(hidden, weight, token_ids, suppressed_ids=suppressed)
    assert logprobs[4] == -torch.inf
    assert torch.isfinite(entropy).all()
    others = torch.arange(NUM_TOKENS) != 4
    logprobs[others].sum().backward()
    assert weight.grad is not None
    assert weight.grad[suppressed].eq(0).all()
    assert torch.isfinite(weight.grad).all()
    # The probabilities of the other ids sum to one.
    rest = torch.tensor([v for v in range(VOCABULARY) if v not in (0, 2)])
    one = hidden[:1].expand(len(rest), -1)
    total = token_logprobs(one, weight.detach(), rest, suppressed_ids=suppressed)[0].exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def test_suppressed_token_in_loss_gets_no_gradient() -> None:
    hidden, weight, token_ids = example()
    token_ids[4] = 2
    suppressed = torch.tensor([0, 2])
    leaf, plain_leaf = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    token_logprobs(hidden, leaf, token_ids, suppressed_ids=suppressed)[0].sum().backward()
    plain(hidden, plain_leaf, token_ids, suppressed_ids=suppressed)[0].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[suppressed].eq(0).all()
    torch.testing.assert_close(leaf.grad, plain_leaf.grad, rtol=0, atol=1e-12)


def test_gradients_of_both_outputs_by_finite_differences() -> None:
    hidden, weight, token_ids = example()
    hidden, weight = hidden[:4].requires_grad_(), weight[:9].requires_grad_()

    def both(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(
            hidden,
            weight,
            token_ids[:4] % 9,
            temperature=0.7,
            suppressed_ids=torch.tensor([1]),
            chunk_tokens=3,
        )

    assert not (token_ids[:4] % 9).eq(1).any()
    torch.autograd.gradcheck(both, [hidden, weight], eps=1e-6, atol=1e-7)


def test_entropy_alone_can_be_differentiated() -> None:
    hidden, weight, token_ids = example()
    hidden.requires_grad_()
    token_logprobs(hidden, weight, token_ids, chunk_tokens=5)[1].sum().backward()
    (expected,) = torch.autograd.grad(plain(hidden, weight, token_ids)[1].sum(), [hidden])
    torch.testing.assert_close(hidden.grad, expected, rtol=0, atol=1e-12)


def test_unused_entropy_adds_no_backward_work(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor | None] = []
    inner = logprobs_module._grad_logits
    monkeypatch.setattr(
        logprobs_module, "_grad_logits", lambda *args: given.append(args[-1]) or inner(*args)
    )
    hidden, weight, token_ids = example()
    logprobs, entropy = token_logprobs(hidden.requires_grad_(), weight, token_ids)
    (logprobs.sum() + entropy.detach().sum()).backward()
    assert given == [None]


def test_certain_tokens_have_zero_entropy_gradient() -> None:
    hidden = torch.tensor([[2000.0]], requires_grad=True)  # log p of the other token: -2000
    _, entropy = token_logprobs(hidden, torch.tensor([[1.0], [0.0]]), torch.tensor([0]))
    entropy.sum().backward()
    assert entropy == 0
    assert hidden.grad == 0


def test_entropy_of_uniform_distribution() -> None:
    hidden = torch.zeros(2, WIDTH)
    _, entropy = token_logprobs(hidden, torch.ones(8, WIDTH), torch.tensor([0, 1]))
    torch.testing.assert_close(entropy, torch.full((2,), 8.0).log())
    _, entropy = token_logprobs(
        hidden,
        torch.ones(8, WIDTH),
        torch.tensor([0, 1]),
        suppressed_ids=torch.tensor([4, 5, 6, 7]),
    )
    torch.testing.assert_close(entropy, torch.full((2,), 4.0).log())


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_frozen_hidden_or_weight_gets_no_gradient(trained: str) -> None:
    hidden, weight, token_ids = example()
    leaf = hidden if trained == "hidden" else weight
    leaf.requires_grad_()
    token_logprobs(hidden, weight, token_ids, chunk_tokens=5)[0].sum().backward()
    (expected,) = torch.autograd.grad(plain(hidden, weight, token_ids)[0].sum(), [leaf])
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-12)
    assert (weight if trained == "hidden" else hidden).grad is None


def test_empty_input_stays_in_the_graph() -> None:
    hidden, weight, token_ids = example()
    hidden = hidden.requires_grad_()
    logprobs, entropy = token_logprobs(hidden[:0], weight, token_ids[:0])
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.eq(0).all()


class LargestOutput(TorchDispatchMode):
    """Records the largest output of any operation, also in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.numel())
        return out


def test_at_most_one_chunk_of_logits_exists() -> None:
    chunk_tokens, width, vocabulary = 5, 4, 301
    hidden = torch.randn(64, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    token_ids = torch.randint(vocabulary, (64,))
    with LargestOutput() as forward:
        logprobs, entropy = token_logprobs(
            hidden,
            weight,
            token_ids,
            temperature=0.9,
            suppressed_ids=torch.tensor([1]),
            chunk_tokens=chunk_tokens,
        )
    with LargestOutput() as backward:
        (logprobs + entropy).sum().backward()
    assert forward.numbers == chunk_tokens * vocabulary
    assert backward.numbers == chunk_tokens * vocabulary
    with LargestOutput() as watched:  # check of the recorder itself
        plain(hidden, weight, token_ids)
    assert watched.numbers == 64 * vocabulary


def test_no_logits_are_saved_for_backward() -> None:
    hidden, weight, token_ids = (torch.randn(64, 4), torch.randn(301, 4), torch.zeros(64).long())
    hidden.requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logprobs(hidden, weight, token_ids, chunk_tokens=5)
    assert kept
    assert max(tensor.numel() for tensor in kept) == weight.numel()


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"temperature": 0.0}, "temperature"), ({"chunk_tokens": 0}, "chunk_tokens")],
)
def test_invalid_settings_are_named(settings: dict[str, float], named: str) -> None:
    hidden, weight, token_ids = example()
    with pytest.raises(ValueError, match=named):
        token_logprobs(hidden, weight, token_ids, **settings)  # type: ignore[arg-type]
