"""Estimates the GPU memory of a training run from its sizes, without running it.

`tvg.estimate.states` estimates weights, gradients and optimizer states, `tvg.estimate.activations`
the activations. The estimate does not include the CUDA context (about 0.5 GiB) and allocator
fragmentation, and on the host the processes themselves and the decoded clips.
"""

from __future__ import annotations

from tvg.estimate.activations import FLOAT, activations, forward_bytes, trunk_forward_bytes
from tvg.estimate.job import Job
from tvg.estimate.lines import Line, Phase
from tvg.estimate.states import gradients, learning_weights, sampling_weights, states, step

DRAW_BYTES = 24  # per word of the vocabulary when a token is sampled; see tvg.rollout.sampling


def estimate(job: Job) -> list[Line]:
    """Returns one line per use of memory, with the phase in which the memory is used."""
    return [
        *states(job),
        _loading(job),
        *_vision(job),
        *_sampling(job),
        *_scoring(job),
        *_learning(job),
        *step(job),
        *_validation(job),
    ]


def _loading(job: Job) -> Line:
    """Returns the weights on the host, before they are moved to the GPU.

    Each process loads all of them and copies the reference. With FSDP2 it loads only its share.
    """
    is_shared = job.sharding.engine == "fsdp2"
    count = (job.params.total + job.own_reference) / (job.sharding.devices if is_shared else 1)
    what = "its share of the weights" if is_shared else "all weights"
    return Line(
        name="loading",
        phase="loading",
        gpu=0,
        host=count * job.loaded_bytes,
        detail=f"each process loads {what}, {job.loaded_bytes} bytes each",
    )


def _scoring(job: Job) -> list[Line]:
    """Returns the reference's forward pass.

    An offloaded reference is moved to the GPU for it, and sharded weights are gathered.
    """
    if not job.has_reference:
        return []
    own = job.reference_size if job.offload_reference else 0
    more, _ = learning_weights(job) if job.sharding.shards_weights else (0, "")
    work = forward_bytes(job.shape, job.row.tokens, job.precision)
    return [
        Line(
            name="reference's forward",
            phase="reference",
            gpu=own + more + work,
            detail="no gradients",
        )
    ]


def _vision(job: Job) -> list[Line]:
    """Returns the clips of the entire step, and the forward pass of a frozen trunk over them."""
    patches = job.prompts * job.patches
    pixels = 0 if job.is_encoded else patches * job.shape.patch_values * FLOAT
    is_kept = not job.params.is_trunk_trained
    width = job.shape.vision_hidden * job.shape.mergers
    features = patches * width * job.precision.compute if is_kept else 0
    runs = is_kept and not job.is_encoded
    return [
        Line(name="clips", phase="always", gpu=pixels + features, detail=f"{patches:,} patches"),
        Line(
            name="vision trunk",
            phase="vision",
            gpu=trunk_forward_bytes(job.shape, patches, job.precision) if runs else 0,
            detail="all clips of a step" if runs else "not run in this phase",
        ),
    ]


def _sampling(job: Job) -> list[Line]:
    if job.group_size < 2:
        return []
    prompts = min(job.prompts, job.prompts_per_call or job.prompts)
    rows = prompts * job.group_size
    prefixes = prompts if job.samples_shared else rows
    tokens, words = job.completion_tokens, job.shape.words
    return [
        *_copies(job, "sampling"),
        Line(
            name="keys and values",
            phase="sampling",
            gpu=_cache_bytes(job, prefixes, rows, tokens),
            detail=_cached(job, prefixes, rows, tokens),
        ),
        Line(
            name="prefill or decode",
            phase="sampling",
            gpu=_drawing_bytes(job, prefixes, rows),
            detail=f"the larger of one layer's states and {rows} x {words:,} logits",
        ),
    ]


def _copies(job: Job, phase: Phase) -> list[Line]:
    size = sampling_weights(job)
    how = "gathered once per rollout" if job.sharding.shards_weights else "for autocast"
    return (
        [Line(name=f"copies of weights, {phase}", phase=phase, gpu=size, detail=how)]
        if size
        else []
    )


def _cached(job: Job, prefixes: int, rows: int, tokens: int) -> str:
    cached = prefixes * job.prompt_tokens + rows * tokens
    drawn = f"{prefixes} x {job.prompt_tokens:,} of prompts, {rows} x {tokens:,} sampled"
    return f"{cached:,} tokens: {drawn}"


def _cache_bytes(job: Job, prefixes: int, rows: int, tokens: int) -> float:
    """Returns the bytes of keys and values of the prompts and the sampled tokens."""
    cached = prefixes * job.prompt_tokens + rows * tokens
    # The engine that computes prompts once scores in float32, and therefore stores float32 keys.
    key_bytes = max(job.precision.compute, FLOAT if job.samples_shared else 0)
    return cached * job.shape.layers * job.shape.keys * (key_bytes + job.precision.compute)


def _drawing_bytes(job: Job, prefixes: int, rows: int) -> float:
    """Returns the bytes of the prefill or of sampling one token per row, if larger."""
    prefill = forward_bytes(job.shape, prefixes * job.prompt_tokens, job.precision)
    return max(prefill, rows * job.shape.words * DRAW_BYTES)


def _validation(job: Job) -> list[Line]:
    """Returns the memory of a batch of validation, or of rating the training queries.

    No training batch is in memory at that time, so the memory that the phase "always" counts for
    the clips of a training batch holds the first evaluation clips.
    """
    if not job.eval_prompts:
        return []
    prompts = min(job.eval_prompts, job.prompts_per_call or job.eval_prompts)
    more = max(job.eval_prompts - job.prompts, 0) * job.patches  # beyond the clips in "always"
    pixels = 0 if job.is_encoded else more * job.shape.patch_values * FLOAT
    features = more * job.shape.vision_hidden * job.shape.mergers * job.precision.compute
    patches = prompts * job.patches
    trunk = 0 if job.is_encoded else trunk_forward_bytes(job.shape, patches, job.precision)
    decoding = _cache_bytes(job, prompts, prompts, job.eval_tokens)
    decoding += _drawing_bytes(job, prompts, prompts)
    return [
        *_copies(job, "validation"),
        Line(
            name="evaluation batch",
            phase="validation",
            gpu=pixels + features + max(trunk, decoding),
            detail=f"{job.eval_prompts} prompts; {_cached(job, prompts, prompts, job.eval_tokens)}",
        ),
    ]


def _learning(job: Job) -> list[Line]:
    row = job.row
    found = activations(
        job.shape,
        job.params,
        row,
        job.precision,
        gradient_checkpointing=job.gradient_checkpointing,
    )
    how = "recomputed in backward" if job.gradient_checkpointing else "all kept"
    copies, kind = learning_weights(job)
    return [
        gradients(job),
        Line(name="copies of weights, learning", phase="learning", gpu=copies, detail=kind),
        Line(
            name="activations",
            phase="learning",
            gpu=found.kept + found.recomputed + max(found.working - found.head, 0),
            detail=f"{row.tokens:,} tokens ({row.prompts} prompts x {row.completions} completions, "
            f"{row.forward}), {how}",
        ),
        Line(
            name="logits",
            phase="learning",
            gpu=found.head,
            detail="one chunk of completion tokens, and the head's gradient",
        ),
    ]
