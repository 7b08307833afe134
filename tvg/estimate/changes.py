"""Changes of the command line that reduce the memory of a job, grouped into alternatives.

Only `data.batch_size` affects the loss, because a step averages over this number of prompts.
Optimizers with rounded states or weights change the updates. Changes of the task itself (shorter
clips, frozen parts) are not suggested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from tvg.estimate.activations import FLOAT, Precision
from tvg.estimate.distribution import LIVE_PARAMETERS, REDUCE_BUCKET
from tvg.estimate.job import BYTES_8BIT, Job, OptimizerCost

HALF = 2


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of the command line.

    Attributes:
        words: arguments of `tvg-train`.
        job: the job with this change.
        cost: what the change costs, in words.
        price: the same as a number, to compare settings: roughly the share of time that is lost.
    """

    words: str
    job: Job
    cost: str
    price: float


def all_changes(job: Job) -> Iterator[Change]:
    """Yields every change that applies to a job."""
    for alternatives in ALTERNATIVES:
        if alternatives is of_completions:
            yield from islice(alternatives(job), 1)
        else:
            yield from alternatives(job)
    if job.prompts > job.row.prompts:
        yield Change(
            words=f"data.batch_size={job.row.prompts}",
            job=replace(job, prompts=job.row.prompts),
            cost="fewer prompts per step and GPU",
            price=1,
        )


def of_states(job: Job) -> Iterator[Change]:
    """Yields other optimizers and strategies."""
    sharding = job.sharding
    if job.optimizer.scratch:
        changed = replace(job, optimizer=replace(job.optimizer, scratch=0))
        yield Change(words="objective/optimizer=adamw_fused", job=changed, cost="none", price=0)
    if sharding.engine == "torch" and job.optimizer.states > BYTES_8BIT:
        yield from _eight_bit(job)
    if sharding.devices > 1:
        for stage, price in ((1, 0.1), (2, 0.15), (3, 0.3)):
            if sharding.stage < stage and sharding.engine != "fsdp2":
                words, changed = f"strategy=deepspeed_zero{stage}", _deepspeed(job, stage)
                yield Change(words=words, job=changed, cost="communication", price=price)
    if sharding.devices > 1 and sharding.engine == "torch":
        yield Change(words="strategy=fsdp2", job=_fsdp2(job), cost="communication", price=0.2)
    if not sharding.offload_optimizer and sharding.engine != "fsdp2":
        for stage, price in ((2, 2), (3, 3)):
            if stage == 2 or sharding.devices > 1:
                yield _offloaded(job, stage, price)


def _eight_bit(job: Job) -> Iterator[Change]:
    eight = OptimizerCost(states=BYTES_8BIT, scratch=0)
    if job.trained_bytes > HALF:
        yield Change(
            words="objective/optimizer=adamw_8bit",
            job=replace(job, optimizer=eight),
            cost="states rounded to 8 bits",
            price=0.3,
        )
    if job.params.adapters:
        return
    words = "" if job.loaded_bytes == HALF else "model.dtype=bfloat16 "
    words += "" if job.precision.compute == HALF else "trainer.precision=bf16-mixed "
    yield Change(
        words=f"{words}objective/optimizer=adamw_8bit_stochastic",
        job=replace(_in_half(job), loaded_bytes=HALF, optimizer=eight),
        cost="weights rounded to bfloat16 and states to 8 bits",
        price=0.5,
    )


def of_reference(job: Job) -> Iterator[Change]:
    """Yields other precisions and places of the reference."""
    if not job.has_reference or job.sharding.shards_weights:
        return
    narrow = replace(job, reference_bytes=HALF)
    if job.is_autocast and job.reference_bytes > HALF:
        words = "objective.reference_dtype=bfloat16"
        yield Change(words=words, job=narrow, cost="none", price=0)
    if not job.offload_reference:
        words = "objective.reference_offload=true"
        away = replace(job, offload_reference=True)
        yield Change(words=words, job=away, cost="copying", price=0.1)
        if job.is_autocast and job.reference_bytes > HALF:
            words += " objective.reference_dtype=bfloat16"
            away = replace(narrow, offload_reference=True)
            yield Change(words=words, job=away, cost="copying", price=0.05)


def of_checkpointing(job: Job) -> Iterator[Change]:
    """Yields gradient checkpointing."""
    if not job.gradient_checkpointing:
        yield Change(
            words="model.gradient_checkpointing=true",
            job=replace(job, gradient_checkpointing=True),
            cost="learning takes a third longer",
            price=0.33,
        )


def of_prefixes(job: Job) -> Iterator[Change]:
    """Yields the forward pass that computes each prompt once."""
    if job.forward == "repeated":
        changed = replace(job, forward="shared_prefix")
        yield Change(words="policy.forward=shared_prefix", job=changed, cost="none", price=0)


def of_engine(job: Job) -> Iterator[Change]:
    """Yields the sampler that stores each prompt once."""
    if not job.samples_shared:
        changed = replace(job, samples_shared=True)
        yield Change(words="rollout=shared_prefix", job=changed, cost="none", price=0)


def of_prompts(job: Job) -> Iterator[Change]:
    """Yields smaller micro-batches: fewer prompts per pass."""
    if job.row.prompts > 1:
        changed = replace(job, micro_prompts=1)
        words = "objective.micro_batch_size=1"
        yield Change(words=words, job=changed, cost="smaller matrices", price=0.1)


def of_completions(job: Job) -> Iterator[Change]:
    """Yields smaller micro-batches: fewer completions per pass."""
    number, passes = job.row.completions // 2, 2
    while number >= 1:
        changed = replace(job, micro_completions=number)
        words = f"objective.micro_batch_completions={number}"
        cost = f"prompts are computed {passes} times"
        yield Change(words=words, job=changed, cost=cost, price=0.3 * (passes - 1))
        number, passes = number // 2, passes * 2


def of_sampling(job: Job) -> Iterator[Change]:
    """Yields smaller batches of the sampler."""
    if job.group_size > 1 and min(job.prompts, job.prompts_per_call or job.prompts) > 1:
        changed = replace(job, prompts_per_call=1)
        words = "rollout.prompts_per_call=1"
        yield Change(words=words, job=changed, cost="slower sampling", price=0.2)


def of_validation(job: Job) -> Iterator[Change]:
    """Yields smaller batches of the validation."""
    if job.eval_prompts > 1:
        changed = replace(job, eval_prompts=1)
        words = "data.eval_batch_size=1"
        yield Change(words=words, job=changed, cost="slower validation", price=0.05)


# At most one change of each can be combined with those of the others.
ALTERNATIVES = (
    of_states,
    of_reference,
    of_prefixes,
    of_engine,
    of_checkpointing,
    of_prompts,
    of_completions,
    of_sampling,
    of_validation,
)


def _in_half(job: Job) -> Job:
    """Returns the job with all weights in half precision."""
    return replace(
        job,
        precision=Precision(weight=HALF, compute=HALF, stream=HALF),
        trained_bytes=HALF,
        is_autocast=False,
    )


def _deepspeed(job: Job, stage: int) -> Job:
    """Returns the job under ZeRO, which uses half-precision weights instead of autocast."""
    sharding = replace(
        job.sharding,
        engine="deepspeed",
        stage=stage,
        bucket=job.sharding.bucket or REDUCE_BUCKET,
        live=job.sharding.live or LIVE_PARAMETERS,
    )
    optimizer = job.optimizer
    if optimizer.states > BYTES_8BIT:
        optimizer = replace(optimizer, states=2 * FLOAT, scratch=FLOAT if optimizer.scratch else 0)
    return replace(
        _in_half(job) if job.precision.compute == HALF else job,
        has_masters=True,
        sharding=sharding,
        optimizer=optimizer,
        gradient_copies=1,
    )


def _fsdp2(job: Job) -> Job:
    """Returns the job under FSDP2, which gathers weights in the precision of the computation."""
    return replace(
        job,
        is_autocast=False,
        precision=replace(job.precision, stream=job.precision.compute),
        sharding=replace(job.sharding, engine="fsdp2", stage=3, reduces_once=True),
        gradient_copies=1,
    )


def _offloaded(job: Job, stage: int, price: float) -> Change:
    changed = _deepspeed(job, stage)
    sharding = replace(changed.sharding, offload_optimizer=True, offload_parameters=stage == 3)
    optimizer = OptimizerCost(states=2 * FLOAT, scratch=0, is_on_cpu=True)
    return Change(
        words=f"strategy=deepspeed_zero{stage}_offload objective/optimizer=adamw_cpu",
        job=replace(changed, sharding=sharding, optimizer=optimizer),
        cost="copying, and steps on the CPU",
        price=price,
    )
