"""Sampling with Hugging Face `generate`, at the policy's own positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from tvg.model.policy import Policy
from tvg.types import PromptBatch, RolloutBatch


class HFRollout:
    """Samples completions by `generate` and keeps the log-probabilities it sampled from.

    Every sampling setting is explicit, so that a checkpoint's generation config (`top_k=50` in
    many) cannot change the distribution silently.

    Args:
        max_new_tokens: longest completion.
        temperature: of the softmax that is sampled; 0 takes the most likely token.
        top_p: nucleus mass kept, 1.0 for all.
        top_k: most likely tokens kept, 0 for all.
        prompts_per_call: prompts sampled together; None for all that are handed in.

    Raises:
        ValueError: a setting out of range; names the config key.
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
        _check("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1")
        _check("temperature", temperature, temperature >= 0, "at least 0")
        _check("top_p", top_p, 0 < top_p <= 1, "in (0, 1]")
        _check("top_k", top_k, top_k >= 0, "at least 0")
        _check(
            "prompts_per_call",
            prompts_per_call,
            prompts_per_call is None or prompts_per_call >= 1,
            "at least 1, or null",
        )
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.prompts_per_call = prompts_per_call

    @property
    def logprob_temperature(self) -> float:
        """The temperature at which a trainer scores this sampler's tokens (1 where greedy)."""
        return self.temperature if self.temperature > 0 else 1.0

    def greedy(self) -> HFRollout:
        """The same engine taking the most likely token: for validation and evaluation."""
        return HFRollout(
            max_new_tokens=self.max_new_tokens,
            temperature=0.0,
            top_p=1.0,
            top_k=0,
            prompts_per_call=self.prompts_per_call,
        )

    def generate(
        self, *, policy: Policy, tokenizer: Any, prompts: PromptBatch, group_size: int, seed: int
    ) -> RolloutBatch:
        """Samples `group_size` completions for each prompt.

        Args:
            policy: what is sampled from; left in the mode it was in.
            tokenizer: turns ids into text.
            prompts: B prompts on the policy's device.
            group_size: completions a prompt, G.
            seed: alone decides the draw; the global random state is left untouched.
        """
        size = self.prompts_per_call or len(prompts)
        parts = []
        devices = [policy.device] if policy.device.type == "cuda" else []
        with torch.no_grad(), sampling_mode(policy), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for start in range(0, len(prompts), size):
                parts.append(self._sample(policy, prompts.rows(start, start + size), group_size))
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
            old_logprobs=logprobs * mask,
            texts=texts,
            is_finished=is_finished,
        )

    def _sample(self, policy: Policy, prompts: PromptBatch, group: int) -> tuple[Tensor, Tensor]:
        recorder = _Recorder(policy.suppressed_ids, self.logprob_temperature)
        ids = policy.model.generate(
            inputs_embeds=policy.embed_prompts(prompts).repeat_interleave(group, dim=0),
            attention_mask=prompts.attention_mask.repeat_interleave(group, dim=0),
            position_ids=policy.position_ids(prompts).repeat_interleave(group, dim=1),
            generation_config=self._generation_config(policy),
            logits_processor=LogitsProcessorList([recorder]),
        )
        return ids, recorder.logprobs(ids)

    def _generation_config(self, policy: Policy) -> GenerationConfig:
        sampled: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            sampled = {
                "do_sample": True,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "top_k": self.top_k,
            }
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            eos_token_id=policy.eos_ids,
            pad_token_id=policy.pad_id,
            use_cache=True,
            **sampled,
        )


class _Recorder(LogitsProcessor):
    """Takes suppressed tokens out and remembers the log-probability of each token drawn.

    `generate` shows it the tokens so far at every step, so the draw of one step is read off at
    the next; only one step's distribution is ever held.
    """

    def __init__(self, suppressed_ids: Tensor, temperature: float) -> None:
        self.suppressed_ids = suppressed_ids
        self.temperature = temperature
        self._distribution: Tensor | None = None  # float32 [N, V]
        self._drawn: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._distribution is not None:
            self._drawn.append(self._distribution.gather(1, input_ids[:, -1:]))
        scores = scores.index_fill(1, self.suppressed_ids, -torch.inf)
        self._distribution = (scores.float() / self.temperature).log_softmax(-1)
        return scores

    def logprobs(self, ids: Tensor) -> Tensor:
        """Float32 [N, C], one for each generated token."""
        assert self._distribution is not None
        drawn = self._drawn
        if len(drawn) < ids.shape[1]:
            drawn = [*drawn, self._distribution.gather(1, ids[:, -1:])]
        return torch.cat(drawn[: ids.shape[1]], dim=1)


@contextmanager
def sampling_mode(policy: Policy) -> Iterator[None]:
    """Eval mode without gradient checkpointing, which makes `generate` go wrong; then back."""
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


def _check(key: str, got: Any, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"rollout.{key}: expected {expected}, got {got!r}")
