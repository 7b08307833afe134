"""Base class of engines that sample with the policy's weights in the training process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from tvg.model.policy import Policy
from tvg.rollout.engine import RolloutEngine, SamplingSettings, check_setting
from tvg.rollout.sampling import uniforms
from tvg.types import PromptBatch, RolloutBatch


class InProcessEngine(RolloutEngine, ABC):
    """Samples with the policy's weights in place; see `RolloutEngine`.

    Apart from rounding, a completion does not depend on the rest of the batch.

    Args:
        max_new_tokens: see `SamplingSettings`.
        temperature: see `SamplingSettings`.
        top_p: see `SamplingSettings`.
        top_k: see `SamplingSettings`.
        prompts_per_call: number of prompts sampled together; None: all given prompts.

    Raises:
        ValueError: a setting is out of range; the message names the config key.
    """

    def __init__(
        self,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        prompts_per_call: int | None,
    ) -> None:
        self.sampling = SamplingSettings(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k
        )
        is_valid = prompts_per_call is None or prompts_per_call >= 1
        check_setting("prompts_per_call", prompts_per_call, is_valid, "at least 1, or null")
        self.prompts_per_call = prompts_per_call
        self._policy: Policy | None = None
        self._tokenizer: Any = None

    def setup(self, *, policy: Policy, tokenizer: Any) -> None:
        self._policy, self._tokenizer = policy, tokenizer

    def close(self) -> None:
        self._policy = self._tokenizer = None

    def greedy(self) -> Self:
        return self._with(self.sampling.greedy())

    def limited(self, max_new_tokens: int) -> Self:
        return self._with(replace(self.sampling, max_new_tokens=max_new_tokens))

    def _with(self, sampling: SamplingSettings) -> Self:
        other = copy(self)
        other.sampling = sampling
        return other

    def generate(self, prompts: PromptBatch, *, group_size: int, seed: int) -> RolloutBatch:
        """Samples `group_size` completions for each prompt; the policy's mode is restored.

        Args:
            prompts: B prompts on the policy's device.
            group_size: completions per prompt, G.
            seed: seed of the draws; the global random state is neither used nor changed.
        """
        policy, tokenizer = self._policy, self._tokenizer
        assert policy is not None, "generate needs a call of setup first"
        draws = None
        if self.sampling.temperature > 0:
            qids = [example.qid for example in prompts.examples]
            draws = uniforms(
                qids, group_size=group_size, num_tokens=self.sampling.max_new_tokens, seed=seed
            ).to(policy.device)
        size = self.prompts_per_call or len(prompts)
        parts = []
        with torch.no_grad(), sampling_mode(policy), _weights_cast_once(policy.device):
            for start in range(0, len(prompts), size):
                rows = slice(start * group_size, (start + size) * group_size)
                part = prompts.rows(start, start + size)
                mine = None if draws is None else draws[rows]
                parts.append(self._sample(policy, part, group_size, mine))
        ids = _stack([ids for ids, _ in parts], policy.pad_id)
        logprobs = _stack([logprobs for _, logprobs in parts], 0.0)
        mask, is_finished = completion_mask(ids, policy.eos_ids)
        texts = tokenizer.batch_decode(
            [row[keep.bool()] for row, keep in zip(ids, mask, strict=True)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return RolloutBatch(
            prompts=prompts,
            group_size=group_size,
            completion_ids=ids.masked_fill(mask == 0, policy.pad_id),
            completion_mask=mask,
            sampler_logprobs=(logprobs * mask).float(),
            texts=texts,
            is_finished=is_finished,
        )

    @abstractmethod
    def _sample(
        self, policy: Policy, prompts: PromptBatch, group_size: int, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Samples completions of all prompts together.

        Args:
            policy: the policy, in eval mode.
            prompts: B prompts.
            group_size: G.
            uniform: float64 [N, max_new_tokens] with N = B * G, the random numbers for
                `tvg.rollout.sampling.draw`; None: greedy.

        Returns:
            (ids int64 [N, C], log-probabilities [N, C]). C is the length of the longest completion.
            Values after the first EOS are ignored.
        """


@contextmanager
def _weights_cast_once(device: torch.device) -> Iterator[None]:
    """If autocast is on, keeps the cast weights for all tokens.

    Lightning's autocast does not cache them, so every token would cast all weights again.
    """
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    dtype = torch.get_autocast_dtype(device.type)
    try:
        with torch.autocast(device.type, dtype=dtype, cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def sampling_mode(policy: Policy) -> Iterator[None]:
    """Within this context, the policy is in eval mode and without gradient checkpointing.

    `generate` does not work with gradient checkpointing.
    """
    was_training = policy.training
    checkpointed: list[Any] = [
        module for module in policy.modules() if getattr(module, "gradient_checkpointing", False)
    ]
    policy.eval()
    for module in checkpointed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        policy.train(was_training)
        for module in checkpointed:
            module.gradient_checkpointing = True


def completion_mask(ids: Tensor, eos_ids: list[int]) -> tuple[Tensor, Tensor]:
    """Marks the tokens up to and including the first EOS.

    Args:
        ids: int64 [N, C].
        eos_ids: tokens that end a completion.

    Returns:
        (mask int64 [N, C], is_finished bool [N]).
    """
    is_eos = torch.isin(ids, torch.tensor(eos_ids, device=ids.device))
    ended_before = is_eos.long().cumsum(1) - is_eos.long()
    return (ended_before == 0).long(), is_eos.any(1)


def _stack(parts: list[Tensor], fill: float) -> Tensor:
    longest = max(part.shape[1] for part in parts)
    return torch.cat(
        [torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=fill) for part in parts]
    )
