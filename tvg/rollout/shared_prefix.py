"""Samples with one prefill per prompt, whose keys and values its group's completions share."""

from __future__ import annotations

import torch
from torch import Tensor

from tvg.model.packing import pack
from tvg.model.policy import Policy
from tvg.rollout.in_process import InProcessEngine
from tvg.rollout.prefix_cache import Decoding, Prefill
from tvg.rollout.sampling import draw
from tvg.types import PromptBatch

STEPS_PER_CHECK = 8  # steps between checks for the end, because each check synchronises the GPU


class SharedPrefixEngine(InProcessEngine):
    """Prefills every prompt once and decodes all completions together; see `InProcessEngine`."""

    def _sample(
        self, policy: Policy, prompts: PromptBatch, group_size: int, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        nothing = prompts.attention_mask.new_zeros((len(prompts), 0))
        row = pack(prompts.attention_mask, nothing, group_size=1)
        prefill = Prefill(row, prompts.attention_mask)
        temperature = self.sampling.logprob_temperature
        logits = policy.prefill(prompts, prefill, group_size=group_size, temperature=temperature)
        cache = Decoding(prefill, group_size=group_size, max_steps=self.sampling.max_new_tokens)
        positions = policy.position_ids(prompts)[..., -1].repeat_interleave(group_size, dim=1)
        eos = torch.tensor(policy.eos_ids, device=policy.device)
        is_finished = torch.zeros(len(logits), dtype=torch.bool, device=policy.device)
        drawn, drawn_logprobs = [], []
        for step in range(self.sampling.max_new_tokens):
            ids, logprobs = draw(
                logits,
                None if uniform is None else uniform[:, step],
                top_p=self.sampling.top_p,
                top_k=self.sampling.top_k,
            )
            drawn.append(ids)
            drawn_logprobs.append(logprobs)
            is_finished |= torch.isin(ids, eos)
            if step + 1 == self.sampling.max_new_tokens or _is_over(is_finished, step):
                break
            positions = positions + 1
            logits = policy.decode(ids, positions, cache, temperature=temperature)
            cache.step += 1
        return torch.stack(drawn, dim=1), torch.stack(drawn_logprobs, dim=1)


def _is_over(is_finished: Tensor, step: int) -> bool:
    if is_finished.device.type != "cpu" and (step + 1) % STEPS_PER_CHECK:
        return False
    return bool(is_finished.all())
