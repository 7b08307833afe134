"""Supervised fine-tuning on answers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tvg.data.collate import pad_rows
from tvg.objective.supervised import supervised_loss
from tvg.task.grounding import GroundingTask
from tvg.training.nonfinite import example_row
from tvg.training.policy_module import PolicyModule
from tvg.types import LossOutput, PromptBatch


class SFTModule(PolicyModule):
    """Trains the policy on labelled answers; only answer tokens contribute to the loss."""

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        ids, mask = target_tokens(batch, self.task, self.tokenizer)
        ids, mask = ids.to(self.device), mask.to(self.device)
        num_tokens = self.mean_over_ranks(mask.sum())

        def loss_of(part: range) -> LossOutput:
            rows = slice(part.start, part.stop)
            prompts = batch.rows(part.start, part.stop)
            logprobs, entropy = self.policy(
                prompts, ids[rows], mask[rows], group_size=1, temperature=1.0
            )
            return supervised_loss(logprobs, entropy, mask[rows], num_tokens=num_tokens)

        totals = self.backward_micro_batches(self.micro_batches(len(batch)), loss_of)
        taken = self.step_optimizer(
            totals["loss"], describe=lambda: [example_row(e) for e in batch.examples]
        )
        self.log_step({**totals, **taken}, show=("loss",))
        return {
            "num_prompts": len(batch),
            "num_tokens": int(mask.sum()),
            "rollout_rows": None,
            "stage_s": self.stages.take(),
        }


def target_tokens(
    prompts: PromptBatch, task: GroundingTask, tokenizer: Any
) -> tuple[Tensor, Tensor]:
    """Target completions, including EOS: ids and mask, int64 [B, C], right-padded.

    The label is an example's coarse `hint` if it has one, else its true segment.

    Raises:
        ValueError: an example has neither.
    """
    rows = []
    for example in prompts.examples:
        segment = example.hint or example.segment
        if segment is None:
            raise ValueError(f"{example.qid}: supervised training needs a segment")
        ids = tokenizer(task.target(segment), add_special_tokens=False)["input_ids"]
        rows.append([*ids, int(tokenizer.eos_token_id)])
    return pad_rows(rows, int(tokenizer.pad_token_id), side="right")
