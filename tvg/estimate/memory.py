"""Estimates the GPU memory of a training run from its sizes, without running it.

Model states follow ZeRO (arXiv 1910.02054, section 3). Under AdamW they take 2 + 2 + 12 bytes per
parameter in half precision with float32 masters, and 4 + 4 + 8 in float32. Stage 1 shards the
optimizer states across GPUs, stage 2 also the gradients, stage 3 also the parameters.
`tvg.estimate.activations` estimates the activations. The estimate does not include the CUDA context
(about 0.5 GiB), communication buffers, layers gathered by stage 3, and allocator fragmentation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from tvg.estimate.activations import FLOAT, activations, forward_bytes, trunk_forward_bytes
from tvg.estimate.job import Job

Phase = Literal["always", "vision", "sampling", "reference", "learning", "optimizer", "validation"]
PHASES: tuple[Phase, ...] = tuple(phase for phase in get_args(Phase) if phase != "always")
DRAW_BYTES = 24  # per word of the vocabulary when a token is sampled; see tvg.rollout.sampling


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the table."""

    name: str
    phase: Phase
    gpu: float  # bytes
    host: float = 0  # bytes in CPU memory, for this GPU's process
    detail: str = ""


def estimate(job: Job) -> list[Line]:
    """Returns one line per use of memory, with the phase in which the memory is used."""
    return [
        *_states(job),
        *_vision(job),
        *_sampling(job),
        *_scoring(job),
        *_learning(job),
        *_step(job),
        *_validation(job),
    ]


def total(lines: list[Line]) -> float:
    """Returns the peak bytes on a GPU: the permanent memory plus the largest phase."""
    return _sum(lines, "always") + max(_sum(lines, phase) for phase in PHASES)


def worst_phase(lines: list[Line]) -> Phase:
    """Returns the phase with the peak memory."""
    return max(PHASES, key=lambda phase: _sum(lines, phase))


def _sum(lines: list[Line], phase: Phase) -> float:
    return sum(line.gpu for line in lines if line.phase == phase)


def _states(job: Job) -> list[Line]:
    params, sharding = job.params, job.sharding
    is_away = sharding.offload_parameters
    share = sharding.share(3)
    policy = [
        Line(
            name=f"parameters, {name}",
            phase="always",
            gpu=0 if is_away else count * bytes_each / share,
            host=count * bytes_each / share if is_away else 0,
            detail=f"{count / 1e9:.3f} billion of {bytes_each} bytes",
        )
        for name, count, bytes_each in (
            ("trained", params.trained, job.trained_bytes),
            ("frozen", params.frozen, job.precision.weight),
        )
    ]
    copies = Line(
        name="half-precision copies",
        phase="always",
        gpu=params.trained * job.precision.compute if job.is_autocast else 0,
        detail="of trained parameters, for autocast",
    )
    each = job.optimizer.states + (FLOAT if job.has_masters else 0)
    states = params.trained * each / sharding.share(1)
    is_away = sharding.offload_optimizer or job.optimizer.is_on_cpu
    optimizer = Line(
        name="optimizer states",
        phase="always",
        gpu=0 if is_away else states,
        host=states if is_away else 0,
        detail=f"{each:.3g} bytes per trained parameter",
    )
    return [*policy, copies, optimizer, _reference(job)]


def _reference(job: Job) -> Line:
    own = _reference_bytes(job) / job.sharding.share(3) if job.has_reference else 0
    is_away = job.offload_reference or job.sharding.offload_parameters
    detail = "copies of trained weights; frozen weights are shared"
    return Line(
        name="reference",
        phase="always",
        gpu=0 if is_away else own,
        host=own if is_away else 0,
        detail=detail if job.has_reference else "none without objective.loss.kl_coef",
    )


def _reference_bytes(job: Job) -> int:
    """Returns the bytes of the reference, which shares frozen weights and has no adapters."""
    return (job.params.trained - job.params.adapters) * job.trained_bytes


def _scoring(job: Job) -> list[Line]:
    """Returns the reference's forward pass; an offloaded reference is moved to the GPU for it."""
    if not job.has_reference:
        return []
    own = _reference_bytes(job) if job.offload_reference else 0
    work = forward_bytes(job.shape, job.row.tokens, job.precision)
    return [
        Line(name="reference's forward", phase="reference", gpu=own + work, detail="no gradients")
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


def _cached(job: Job, prefixes: int, rows: int, tokens: int) -> str:
    cached = prefixes * job.prompt_tokens + rows * tokens
    drawn = f"{prefixes} x {job.prompt_tokens:,} of prompts, {rows} x {tokens:,} sampled"
    return f"{cached:,} tokens: {drawn}"


def _cache_bytes(job: Job, prefixes: int, rows: int, tokens: int) -> float:
    """Returns the bytes of keys and values of the prompts and the sampled tokens."""
    cached = prefixes * job.prompt_tokens + rows * tokens
    return cached * job.shape.layers * 2 * job.shape.keys * job.precision.compute


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
        Line(
            name="evaluation batch",
            phase="validation",
            gpu=pixels + features + max(trunk, decoding),
            detail=f"{job.eval_prompts} prompts; {_cached(job, prompts, prompts, job.eval_tokens)}",
        )
    ]


def _learning(job: Job) -> list[Line]:
    row, params, sharding = job.row, job.params, job.sharding
    gradients = params.trained * job.trained_bytes * job.gradient_copies / sharding.share(2)
    is_away = sharding.offload_optimizer and sharding.stage >= 2
    found = activations(
        job.shape,
        params,
        row,
        job.precision,
        gradient_checkpointing=job.gradient_checkpointing,
    )
    how = "recomputed in backward" if job.gradient_checkpointing else "all kept"
    return [
        Line(
            name="gradients",
            phase="learning",
            gpu=0 if is_away else gradients,
            host=gradients if is_away else 0,
        ),
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


def _step(job: Job) -> list[Line]:
    """Returns the optimizer step: gradients are still in memory, but activations are not."""
    (gradients,) = (line for line in _learning(job) if line.name == "gradients")
    scratch = job.params.trained * job.optimizer.scratch / job.sharding.share(1)
    is_away = job.sharding.offload_optimizer or job.optimizer.is_on_cpu
    return [
        replace(gradients, name="gradients (still kept)", phase="optimizer", host=0),
        Line(name="step", phase="optimizer", gpu=0 if is_away else scratch, detail="temporaries"),
    ]
