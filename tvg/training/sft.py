"""Supervised fine-tuning on labelled answers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tvg.data.collate import pad_rows
from tvg.objective.supervised import supervised_loss
from tvg.task.protocol import Task
from tvg.training.nonfinite import example_row
from tvg.training.policy_module import PolicyModule
from tvg.training.step_output import StepOutput
from tvg.types import LossOutput, PromptBatch


class SFTModule(PolicyModule):
    """Trains the policy on labelled answers; only answer tokens contribute to the loss."""

    def step(self, batch: PromptBatch, *, is_last_batch: bool) -> StepOutput:
        ids, mask = target_tokens(batch, self.task, self.tokenizer)
        ids, mask = ids.to(self.device), mask.to(self.device)
        num_tokens = self.mean_over_ranks(mask.sum())

        def loss_of(prompts: range) -> LossOutput:
            rows = slice(prompts.start, prompts.stop)
            logprobs, entropy = self.policy(
                batch.rows(prompts.start, prompts.stop),
                ids[rows],
                mask[rows],
                group_size=1,
                temperature=1.0,
            )
            return supervised_loss(logprobs, entropy, mask[rows], num_tokens=num_tokens)

        totals = self.backward_step(lambda: self.micro_batches(len(batch)), loss_of)
        taken = self.step_optimizer(
            totals["loss"], describe=lambda: [example_row(e) for e in batch.examples]
        )
        return StepOutput(
            num_prompts=len(batch),
            num_tokens=int(mask.sum()),
            metrics={**totals, **taken},
            shown=("loss",),
            stage_s=self.stages.take(),
        )


def target_tokens(prompts: PromptBatch, task: Task, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Returns ids and mask of target completions with EOS, int64 [B, C], right-padded.

    Raises:
        ValueError: an example has no label.
    """
    rows = []
    for example in prompts.examples:
        ids = tokenizer(task.target(example), add_special_tokens=False)["input_ids"]
        rows.append([*ids, int(tokenizer.eos_token_id)])
    return pad_rows(rows, int(tokenizer.pad_token_id), side="right")
