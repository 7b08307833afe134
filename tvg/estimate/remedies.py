"""Suggests settings that reduce the memory of a job, with the estimated savings.

Only `data.batch_size` affects the loss, because a step averages over this number of prompts.
Changes of the task itself (shorter clips, frozen parts) are not suggested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tvg.estimate.activations import FLOAT, Precision
from tvg.estimate.job import BYTES_8BIT, Job, OptimizerCost
from tvg.estimate.memory import estimate, total

LEAST_SHARE = 0.01  # of the total; smaller savings are not listed


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change of the command line."""

    words: str
    saved: float  # bytes per GPU, if this is the only change
    cost: str


def remedies(job: Job) -> list[Remedy]:
    """Returns the changes that help on their own, largest saving first."""
    before = total(estimate(job))
    found = [
        Remedy(words=words, saved=before - total(estimate(changed)), cost=cost)
        for words, changed, cost in _changes(job)
    ]
    helping = [remedy for remedy in found if remedy.saved > LEAST_SHARE * before]
    return sorted(helping, key=lambda remedy: -remedy.saved)


def _changes(job: Job) -> Iterator[tuple[str, Job, str]]:
    yield from _of_activations(job)
    yield from _of_states(job)


def _of_activations(job: Job) -> Iterator[tuple[str, Job, str]]:
    if not job.gradient_checkpointing:
        changed = replace(job, gradient_checkpointing=True)
        yield "model.gradient_checkpointing=true", changed, "learning takes a third longer"
    if job.forward == "repeated":
        yield "policy.forward=shared_prefix", replace(job, forward="shared_prefix"), "none"
    if not job.samples_shared:
        yield "rollout=shared_prefix", replace(job, samples_shared=True), "none"
    if job.row.prompts > 1:
        yield (
            "objective.micro_batch_size=1",
            replace(job, micro_prompts=1),
            "smaller matrices",
        )
    if job.row.completions > 1:
        half = job.row.completions // 2
        words = f"objective.micro_batch_completions={half}"
        yield words, replace(job, micro_completions=half), "prompts are computed twice"
    if job.group_size > 1 and min(job.prompts, job.prompts_per_call or job.prompts) > 1:
        yield "rollout.prompts_per_call=1", replace(job, prompts_per_call=1), "slower sampling"
    if job.eval_prompts > 1:
        yield "data.eval_batch_size=1", replace(job, eval_prompts=1), "slower validation"
    if job.prompts > job.row.prompts:
        words = f"data.batch_size={job.row.prompts}"
        yield words, replace(job, prompts=job.row.prompts), "fewer prompts per step and GPU"


def _of_states(job: Job) -> Iterator[tuple[str, Job, str]]:
    if job.has_reference and not job.offload_reference:
        yield "objective.reference_offload=true", replace(job, offload_reference=True), "copying"
    if job.optimizer.scratch:
        changed = replace(job, optimizer=replace(job.optimizer, scratch=0))
        yield "objective/optimizer=adamw_fused", changed, "none"
    if job.optimizer.states >= 2 * FLOAT and not job.sharding.stage:
        changed = replace(job, optimizer=OptimizerCost(states=BYTES_8BIT, scratch=0))
        yield "objective/optimizer=adamw_8bit", changed, "states rounded to 8 bits"
    if job.sharding.devices > 1 and job.sharding.stage < 2:
        yield "strategy=deepspeed_zero2", _sharded(job), "communication"
    if not job.sharding.offload_optimizer:
        sharded = _sharded(job)
        changed = replace(
            sharded,
            optimizer=OptimizerCost(states=2 * FLOAT, scratch=0, is_on_cpu=True),
            sharding=replace(sharded.sharding, offload_optimizer=True),
        )
        words = "strategy=deepspeed_zero2_offload objective/optimizer=adamw_cpu"
        yield words, changed, "copying, and steps on the CPU"


def _sharded(job: Job) -> Job:
    """Returns the job under ZeRO-2, which uses half-precision weights instead of autocast."""
    half = Precision(weight=2, compute=2, stream=2)
    return replace(
        job,
        precision=half if job.is_autocast else job.precision,
        trained_bytes=half.weight if job.is_autocast else job.trained_bytes,
        is_autocast=False,
        has_masters=job.has_masters or job.is_autocast,
        sharding=replace(job.sharding, stage=max(job.sharding.stage, 2)),
        gradient_copies=1,
    )
