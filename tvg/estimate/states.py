"""Estimates the memory of model states: weights, reference, gradients and optimizer states.

They follow ZeRO (arXiv 1910.02054, section 3). Under AdamW they take 2 + 2 + 12 bytes per
parameter in half precision with float32 masters, and 4 + 4 + 8 in float32. Stage 1 shards the
optimizer states across GPUs, stage 2 also the gradients, stage 3 and FSDP2 also the parameters.
"""

from __future__ import annotations

from dataclasses import replace

from tvg.estimate.activations import FLOAT
from tvg.estimate.job import Job
from tvg.estimate.lines import Line

HALF = 2


def states(job: Job) -> list[Line]:
    """Returns the memory that is in use all the time."""
    return [
        _weights(job, "trained", job.params.trained, job.trained_bytes),
        _weights(job, "frozen", job.params.frozen, job.precision.weight),
        _optimizer(job),
        _reference(job),
        *_buffers(job),
    ]


def _weights(job: Job, name: str, count: int, bytes_each: int) -> Line:
    share = count * bytes_each / job.sharding.share(3)
    is_away = job.sharding.offload_parameters
    return Line(
        name=f"parameters, {name}",
        phase="always",
        gpu=0 if is_away else share,
        host=share if is_away else 0,
        detail=f"{count / 1e9:.3f} billion of {bytes_each} bytes",
    )


def _optimizer(job: Job) -> Line:
    share = job.params.trained / job.sharding.share(1)
    is_away = job.sharding.offload_optimizer or job.optimizer.is_on_cpu
    # With ZeRO-Offload, the host also keeps the updated weights before they are copied to the GPU.
    more = job.trained_bytes if is_away and job.has_masters else 0
    return Line(
        name="optimizer states",
        phase="always",
        gpu=0 if is_away else job.state_bytes * share,
        host=(job.state_bytes + more) * share if is_away else 0,
        detail=f"{job.state_bytes:.3g} bytes per trained parameter",
    )


def _reference(job: Job) -> Line:
    share = job.reference_size / job.sharding.share(3)
    is_away = job.offload_reference or job.sharding.offload_parameters
    detail = "copies of trained weights; frozen weights are shared"
    return Line(
        name="reference",
        phase="always",
        gpu=0 if is_away else share,
        host=share if is_away else 0,
        detail=detail if job.has_reference else "none without objective.loss.kl_coef",
    )


def _buffers(job: Job) -> list[Line]:
    """Returns DeepSpeed's buffers: for reducing gradients, and to move offloaded ones."""
    if job.sharding.engine != "deepspeed":
        return []
    numbers = 2 * job.sharding.bucket
    if job.sharding.offload_optimizer:
        numbers += job.largest_weight
    return [
        Line(
            name="communication buffers",
            phase="always",
            gpu=numbers * job.trained_bytes,
            detail="strategy.reduce_bucket_size numbers, twice",
        )
    ]


def gradients(job: Job) -> Line:
    """Returns the gradients, from the first backward pass to the end of the optimizer step."""
    sharding = job.sharding
    trained = job.params.trained
    if sharding.offload_optimizer and sharding.stage >= 2:
        # DeepSpeed adds up gradients in the precision of the weights, then copies them to float32.
        each = job.trained_bytes + (FLOAT if job.has_masters else 0)
        share = trained / sharding.share(2)
        return Line(name="gradients", phase="learning", gpu=0, host=each * share)
    size = trained * job.trained_bytes * job.gradient_copies / sharding.share(2)
    if sharding.engine == "fsdp2" and sharding.reduces_once and job.num_micro_batches > 1:
        size += trained * FLOAT
    return Line(name="gradients", phase="learning", gpu=size)


def step(job: Job) -> list[Line]:
    """Returns the optimizer step: gradients are still in memory, but activations are not."""
    share = job.params.trained / job.sharding.share(1)
    # DeepSpeed converts its share of the gradients to float32.
    each = job.optimizer.scratch + (FLOAT if job.has_masters else 0)
    is_away = job.sharding.offload_optimizer or job.optimizer.is_on_cpu
    return [
        replace(gradients(job), name="gradients (still kept)", phase="optimizer", host=0),
        Line(
            name="step",
            phase="optimizer",
            gpu=0 if is_away else share * each,
            detail="temporaries",
        ),
    ]


def sampling_weights(job: Job) -> float:
    """Returns the bytes of weights that are added for sampling: gathered, or cast by autocast.

    Sharded weights are gathered once per rollout. Autocast casts the trained weights once per
    rollout, except the embeddings and the head, and does not keep casts of frozen weights.
    """
    if job.sharding.shards_weights:
        return job.params.total * job.precision.compute
    if not job.is_autocast:
        return 0
    return max(job.params.trained - job.wide_reference, 0) * job.precision.compute


def learning_weights(job: Job) -> tuple[float, str]:
    """Returns the bytes of copies of weights in a forward and backward pass, and their kind."""
    shape, each = job.shape, job.precision.compute
    layer = shape.attention_params + shape.mlp_params
    if job.sharding.engine == "fsdp2":
        # The embeddings and the head stay gathered; of the layers, one and the next one do. The
        # gradients of a layer are gathered in float32 while they are reduced.
        ends = 2 * shape.words * shape.hidden
        size = ends * (each + FLOAT) + layer * (2 * each + each + FLOAT)
        return min(size, job.params.total * (each + FLOAT)), "gathered layers and their gradients"
    if job.sharding.shards_weights:
        live = min(job.sharding.live + layer, job.params.total)
        return live * each, "gathered weights, at most stage3_max_live_parameters"
    if not job.is_autocast:
        return 0, "none"
    if job.gradient_checkpointing:
        return layer * each, "of one layer, for autocast"
    kept = max(job.params.trained - job.wide_reference, 0)
    return kept * each, "of trained parameters, for autocast"
