"""Reference engine: samples with Hugging Face `generate`, at the policy's position ids."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from tvg.core.logprobs import rounded_dtype, token_logits
from tvg.model.policy import Policy
from tvg.rollout.engine import SamplingSettings
from tvg.rollout.in_process import InProcessEngine
from tvg.rollout.sampling import draw
from tvg.types import PromptBatch


class HFEngine(InProcessEngine):
    """Calls `generate` on G copies of every prompt; the arguments are those of the base class."""

    def _sample(
        self, policy: Policy, prompts: PromptBatch, group_size: int, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        drawer = _Drawer(self.sampling, policy, uniform)
        config = GenerationConfig(
            max_new_tokens=self.sampling.max_new_tokens,
            eos_token_id=policy.eos_ids,
            pad_token_id=policy.pad_id,
            use_cache=True,
            do_sample=False,
        )
        ids = policy.generate(
            prompts.repeat(group_size),
            before_head=drawer.note_states,
            generation_config=config,
            logits_processor=LogitsProcessorList([drawer]),
        )
        return ids, torch.stack(drawer.logprobs, dim=1)


class _Drawer(LogitsProcessor):
    """Draws the next token and masks all others, so that greedy `generate` selects it."""

    def __init__(self, sampling: SamplingSettings, policy: Policy, uniform: Tensor | None) -> None:
        self.sampling = sampling
        self.suppressed_ids = policy.suppressed_ids
        self.states = self.head = torch.empty(0)
        self.uniform = uniform
        self.logprobs: list[Tensor] = []

    def note_states(self, head: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        """Stores the states that the head receives: the trainer may multiply them otherwise."""
        self.states, self.head = given[0][:, -1], head.get_parameter("weight")

    def _logits(self, scores: Tensor) -> Tensor:
        temperature = self.sampling.logprob_temperature
        if rounded_dtype(self.states, self.head) is None:
            return scores.float().index_fill(1, self.suppressed_ids, -torch.inf) / temperature
        return token_logits(
            self.states, self.head, temperature=temperature, suppressed_ids=self.suppressed_ids
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = len(self.logprobs)
        ids, logprobs = draw(
            self._logits(scores),
            None if self.uniform is None else self.uniform[:, step],
            top_p=self.sampling.top_p,
            top_k=self.sampling.top_k,
        )
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter(1, ids[:, None], 0.0)
