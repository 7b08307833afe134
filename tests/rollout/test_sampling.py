"""Tests of token sampling: uniform numbers, probabilities, top-k and top-p."""

import math

import pytest
import torch

from tvg.rollout.sampling import cumulative_sum, draw, uniforms

BELOW_1 = 1 - 2**-53  # the largest number that `torch.rand` returns in float64
PROBS = [0.1, 0.2, 0.05, 0.4, 0.25]


def logits_of(probs, num=1):
    return torch.tensor(probs, dtype=torch.float32).log().expand(num, -1).contiguous()


def drawn(probs, uniform, *, top_p=1.0, top_k=0):
    """Returns one token id per uniform number, drawn from `probs`."""
    at = torch.tensor(uniform, dtype=torch.float64)
    ids, _ = draw(logits_of(probs, len(at)), at, top_p=top_p, top_k=top_k)
    return ids.tolist()


# -- uniform numbers ------------------------------------------------------------------------------


def numbers(*qids, group_size=2, num_tokens=4, seed=0):
    return uniforms(list(qids), group_size=group_size, num_tokens=num_tokens, seed=seed)


def test_uniforms_are_reproducible_and_in_range():
    first = numbers("a", "b", num_tokens=2000)
    assert first.shape == (4, 2000)
    assert first.dtype == torch.float64
    assert torch.equal(first, numbers("a", "b", num_tokens=2000))
    assert float(first.min()) >= 0
    assert float(first.max()) < 1
    # Mean of 2,000: 1/2 with a standard deviation of 0.0065.
    assert (first.mean(1) - 0.5).abs().max() < 0.03


def test_uniforms_depend_only_on_seed_query_and_completion_index():
    alone = numbers("b", group_size=3)
    assert torch.equal(numbers("a", "b", "c", group_size=3)[3:6], alone)
    assert torch.equal(numbers("c", "b", group_size=3)[3:6], alone)
    assert torch.equal(numbers("b", group_size=1), alone[:1])  # a smaller group is a prefix
    rows = torch.cat([alone, numbers("a", group_size=3), numbers("b", group_size=3, seed=1)])
    assert len(rows.unique(dim=0)) == 9


def test_shorter_completions_use_a_prefix_of_the_same_numbers():
    assert torch.equal(numbers("a", num_tokens=3), numbers("a", num_tokens=9)[:, :3])


def test_repeated_query_gets_other_numbers():
    twice = numbers("a", "b", "a")
    assert torch.equal(twice[:4], numbers("a", "b"))
    assert not (twice[4:] == twice[:2]).any()
    assert torch.equal(twice, numbers("a", "b", "a"))


def test_seed_and_query_id_are_kept_separate():
    """For example, seed 1 of query "1/a" and seed 11 of query "a" give different numbers."""
    rows = [numbers(qid, group_size=11, seed=seed) for seed in (1, 11) for qid in ("a", "1", "1/a")]
    assert len(torch.cat(rows).unique(dim=0)) == 6 * 11


def test_uniforms_keep_the_global_random_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    numbers("a")
    assert torch.equal(torch.get_rng_state(), state)


# -- drawing --------------------------------------------------------------------------------------


def test_each_number_selects_the_token_of_its_interval():
    # The tokens' intervals end at 0.1, 0.3, 0.35, 0.75, 1.
    at = [0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.3499, 0.3501, 0.7499, 0.7501, BELOW_1]
    assert drawn(PROBS, at) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_frequencies_match_the_probabilities():
    num = 20_000
    at = torch.rand(num, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor(drawn(PROBS, at.tolist()))
    found = torch.bincount(ids, minlength=5) / num
    # Five standard deviations of a frequency are at most 5 * sqrt(0.25 / 20,000) = 0.018.
    torch.testing.assert_close(found, torch.tensor(PROBS), atol=0.018, rtol=0)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("top_k", [0, 2])
def test_tokens_of_probability_zero_are_never_drawn(top_p, top_k):
    probs = [0.0, 0.5, 0.0, 0.5, 0.0]
    at = [0.0, 0.25, 0.5 - 1e-9, 0.5, 0.75, BELOW_1]
    assert drawn(probs, at, top_p=top_p, top_k=top_k) == [1, 1, 1, 3, 3, 3]


def test_extreme_numbers_select_possible_tokens_of_a_large_vocabulary():
    """Of 152,064 tokens, only 50,000 to 99,999 are possible; the two draws select these ends."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.full((2, 152_064), -torch.inf)
    logits[:, 50_000:100_000] = torch.randn(50_000, generator=generator)
    ids, logprobs = draw(
        logits, torch.tensor([0.0, BELOW_1], dtype=torch.float64), top_p=1.0, top_k=0
    )
    assert ids.tolist() == [50_000, 99_999]
    assert torch.isfinite(logprobs).all()


def test_rare_tokens_are_distinguished():
    """1,000 tokens of probability 1e-9 follow a likely one; float32 steps near 1 are 6e-8."""
    logits = torch.full((1, 1001), math.log(1e-9))
    logits[0, 0] = 0
    at = torch.linspace(1 - 1.1e-6, BELOW_1, 2500, dtype=torch.float64)
    ids, _ = draw(logits.expand(2500, -1), at, top_p=1.0, top_k=0)
    assert len(ids.unique()) > 990


def test_greedy_ignores_top_p_and_top_k():
    logits = logits_of(PROBS)
    for top_p, top_k in ((1.0, 0), (0.1, 1)):
        ids, logprobs = draw(logits, None, top_p=top_p, top_k=top_k)
        assert ids.tolist() == [3]
        assert float(logprobs) == pytest.approx(math.log(0.4), rel=1e-6)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.39, [3]),  # 0.4 alone reaches it
        (0.41, [3, 4]),  # 0.4 does not, 0.65 does
        (0.64, [3, 4]),
        (0.66, [1, 3, 4]),
        (0.94, [0, 1, 3, 4]),
        (0.96, [0, 1, 2, 3, 4]),
        (1e-9, [3]),  # one token is always kept
    ],
)
def test_top_p_keeps_the_smallest_set_with_that_probability(top_p, kept):
    at = torch.linspace(0, BELOW_1, 400, dtype=torch.float64).tolist()
    assert sorted(set(drawn(PROBS, at, top_p=top_p))) == kept


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, [3]), (2, [3, 4]), (3, [1, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_top_k_keeps_the_likeliest(top_k, kept):
    at = torch.linspace(0, BELOW_1, 400, dtype=torch.float64).tolist()
    assert sorted(set(drawn(PROBS, at, top_k=top_k))) == kept


def test_kept_tokens_keep_their_relative_probabilities():
    # The kept probabilities 0.2, 0.4 and 0.25 become 4/17, 8/17 and 5/17.
    for settings in ({"top_k": 3}, {"top_p": 0.8}):
        at = [0.0, 4 / 17 - 1e-6, 4 / 17 + 1e-6, 12 / 17 - 1e-6, 12 / 17 + 1e-6, BELOW_1]
        assert drawn(PROBS, at, **settings) == [1, 1, 3, 3, 4, 4]


def test_top_p_applies_after_top_k():
    # top_k=3 keeps 0.4, 0.25 and 0.2, in sum 0.85. Half of that is 0.425, which exceeds 0.4.
    at = torch.linspace(0, BELOW_1, 400, dtype=torch.float64).tolist()
    assert set(drawn(PROBS, at, top_k=3, top_p=0.5)) == {3, 4}
    assert set(drawn(PROBS, at, top_k=3, top_p=0.47)) == {3}


def test_logprobs_ignore_top_k():
    at = torch.tensor([0.0], dtype=torch.float64)
    ids, logprobs = draw(logits_of(PROBS), at, top_p=1.0, top_k=1)
    assert ids.tolist() == [3]
    assert float(logprobs) == pytest.approx(math.log(0.4), rel=1e-6)


def test_rows_are_drawn_independently():
    logits = torch.cat([logits_of([0.9, 0.1]), logits_of([0.1, 0.9])])
    ids, logprobs = draw(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), top_p=1.0, top_k=0)
    assert ids.tolist() == [0, 1]
    assert logprobs.exp().tolist() == pytest.approx([0.9, 0.9], rel=1e-6)


class OnGPU:
    """Numbers that claim to be on a GPU; only the CPU may add them up."""

    device = torch.device("cuda:0")

    def __init__(self, values):
        self.values = values

    def cpu(self):
        return self.values

    def cumsum(self, dim):
        return "summed on the GPU"


def test_deterministic_sums_run_on_the_cpu(monkeypatch):
    values = OnGPU(torch.tensor([0.25, 0.5, 0.25]))
    assert cumulative_sum(values) == "summed on the GPU"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr(torch.Tensor, "to", lambda sums, device: (device, sums))
    device, sums = cumulative_sum(values)
    assert device == values.device
    assert sums.tolist() == [0.25, 0.75, 1.0]
