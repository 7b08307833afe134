"""Tests that faults in the shared-prefix pass make its results differ from `repeated`.

The equality tests in `test_shared_prefix.py` allow a difference of 1e-12. Each fault here causes
more than 1e-4: forward faults in every result, backward faults in the gradients.
"""

from dataclasses import replace

import pytest
import torch
from helpers.completions import LENGTHS, completions, learn, without_float32_inside, worst_errors
from helpers.tiny_policy import make_parts

from tvg.model import completion_states, prefix_attention
from tvg.model.packing import Group, pack

LARGE = 1e-4


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world)
    made.policy.double()
    return made


def errors_with(fault, parts, monkeypatch):
    """Returns the errors of `shared_prefix` with a fault, compared with `repeated` without it."""
    without_float32_inside(monkeypatch)
    prompts, answers = parts.batch(4).rows(1, 4), completions(LENGTHS)
    repeated = learn(parts.policy, prompts, answers, forward_by="repeated")
    fault(monkeypatch)
    shared = learn(parts.policy, prompts, answers, forward_by="shared_prefix")
    return worst_errors(shared, repeated)


def completions_attend_to_earlier_completions(monkeypatch):
    """All completions of a group attend as if they were one completion."""

    def wrong(prompt_mask, completion_mask, *, group_size):
        row = pack(prompt_mask, completion_mask, group_size=group_size)
        lengths = completion_mask.sum(1).view(-1, group_size).sum(1)
        joined = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return replace(row, groups=pack(prompt_mask, joined, group_size=1).groups)

    monkeypatch.setattr(completion_states, "pack", wrong)


def completions_attend_to_the_wrong_prompt(monkeypatch):
    def wrong(prompt_mask, completion_mask, *, group_size):
        row = pack(prompt_mask, completion_mask, group_size=group_size)
        lengths = [group.prompts.shape[1] for group in row.groups]
        shortest = min(lengths)
        first = row.groups[lengths.index(shortest)].prompts
        groups = [
            Group(
                prompts=torch.cat([first, group.prompts[:, shortest:]], dim=1),
                completions=group.completions,
                is_real=group.is_real,
            )
            for group in row.groups
        ]
        return replace(row, groups=groups)

    monkeypatch.setattr(completion_states, "pack", wrong)


def positions_are_one_too_large(monkeypatch):
    real = completion_states.extend_positions
    monkeypatch.setattr(completion_states, "extend_positions", lambda *args: real(*args) + 1)


def positions_continue_across_completions(monkeypatch):
    """Each completion starts after the previous one, as if the row were one text."""
    real = completion_states.extend_positions

    def wrong(last, num):
        after = real(last, num)
        return after + num * (torch.arange(after.shape[1]) % 4)[None, :, None]

    monkeypatch.setattr(completion_states, "extend_positions", wrong)


def causal_mask_of_prompts_is_dropped(monkeypatch):
    """Prompt tokens attend to later tokens; completions are unchanged."""
    real, real_backward = prefix_attention.attend, prefix_attention.attend_backward

    def is_prompt(query):
        return query.shape[2] > max(LENGTHS)

    def wrong(query, *states, is_causal, scale):
        return real(query, *states, is_causal=is_causal and not is_prompt(query), scale=scale)

    def wrong_backward(grad, attended, query, *states, is_causal, scale):
        causal = is_causal and not is_prompt(query)
        return real_backward(grad, attended, query, *states, is_causal=causal, scale=scale)

    monkeypatch.setattr(prefix_attention, "attend", wrong)
    monkeypatch.setattr(prefix_attention, "attend_backward", wrong_backward)


def causal_mask_of_completions_is_dropped(monkeypatch):
    real = prefix_attention.attend

    def wrong(query, *states, is_causal, scale):
        is_own = query.shape[2] <= max(LENGTHS)
        return real(query, *states, is_causal=is_causal and not is_own, scale=scale)

    monkeypatch.setattr(prefix_attention, "attend", wrong)


def log_sum_exps_are_averaged(monkeypatch):
    monkeypatch.setattr(torch, "logaddexp", lambda one, other: (one + other) / 2)


def a_token_is_predicted_from_its_own_state(monkeypatch):
    def wrong(*args, **kwargs):
        row = pack(*args, **kwargs)
        return replace(row, sources=(row.sources + 1).clamp(max=len(row.needed) - 1))

    monkeypatch.setattr(completion_states, "pack", wrong)


def prompts_get_no_gradient_from_completions(monkeypatch):
    """Backward only: completions add no gradient to the keys and values of the prompt."""
    real = prefix_attention.attend_backward

    def wrong(*args, is_causal, scale):
        query, key, value = real(*args, is_causal=is_causal, scale=scale)
        of_prompt = not is_causal and args[2].shape[2] > 1
        return (query, key * 0, value * 0) if of_prompt else (query, key, value)

    monkeypatch.setattr(prefix_attention, "attend_backward", wrong)


def backward_log_sum_exps_are_too_small(monkeypatch):
    """Backward only: every log-sum-exp is 0.1 too small."""
    real = prefix_attention.Attended

    def wrong(out, lse, state):
        return real(out, lse - 0.1, state)

    monkeypatch.setattr(prefix_attention, "Attended", wrong)


FORWARD = [
    completions_attend_to_earlier_completions,
    completions_attend_to_the_wrong_prompt,
    positions_are_one_too_large,
    positions_continue_across_completions,
    causal_mask_of_prompts_is_dropped,
    causal_mask_of_completions_is_dropped,
    log_sum_exps_are_averaged,
    a_token_is_predicted_from_its_own_state,
]
BACKWARD = [
    prompts_get_no_gradient_from_completions,
    backward_log_sum_exps_are_too_small,
]


@pytest.mark.parametrize("fault", FORWARD, ids=lambda fault: fault.__name__)
def test_forward_faults_change_every_result(parts, fault, monkeypatch):
    errors = errors_with(fault, parts, monkeypatch)
    assert min(errors.values()) > LARGE, errors


@pytest.mark.parametrize("fault", BACKWARD, ids=lambda fault: fault.__name__)
def test_backward_faults_change_only_gradients(parts, fault, monkeypatch):
    errors = errors_with(fault, parts, monkeypatch)
    assert errors["logprobs"] <= 1e-12, errors
    assert errors["gradient"] > LARGE, errors


def test_results_agree_without_a_fault(parts, monkeypatch):
    errors = errors_with(lambda _: None, parts, monkeypatch)
    assert max(errors.values()) <= 1e-12, errors
