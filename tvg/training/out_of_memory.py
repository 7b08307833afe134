"""Names the stage and the config keys of an out-of-memory error, and repeats a step in parts.

A gradient does not depend on the size of the passes, so a step that ran out of memory can be
repeated with half of the prompts, or of the completions, per pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from lightning.pytorch import Trainer

from tvg.training.ranks import is_true_on_all_ranks

log = logging.getLogger(__name__)
T = TypeVar("T")

_LESS_PER_PASS = (
    "objective.micro_batch_size",
    "objective.micro_batch_completions",
    "model.gradient_checkpointing=true",
    "train.retry_on_oom=true",
)
# Stage of a step -> keys that reduce its memory, the cheapest first.
KEYS = {
    "vision": ("data.clip.sampling", "model.freeze_vision=true", "data/cache=features"),
    "sampling": ("rollout.prompts_per_call", "rollout.max_new_tokens", "objective.group_size"),
    "reward": (),
    "reference": ("objective.reference_offload=true", *_LESS_PER_PASS),
    "policy": _LESS_PER_PASS,
    "backward": _LESS_PER_PASS,
    "optimizer": (
        "objective/optimizer=adamw_fused",
        "strategy=deepspeed_zero2",
        "model/adapter=lora",
    ),
    "validation": ("data.eval_batch_size", "rollout.prompts_per_call", "rollout.max_new_tokens"),
}
_ON_CPU = "DefaultCPUAllocator: "  # torch raises a RuntimeError with this text


class StageOutOfMemoryError(ValueError):
    """A stage of a step needed more memory than there is; the message names keys to change."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether torch could not allocate memory on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _ON_CPU in str(error)


@contextmanager
def naming_stage(stage: str, *, rank: int, step: int) -> Iterator[None]:
    """Turns out-of-memory errors of a block into `StageOutOfMemoryError`.

    Args:
        stage: the stage of the step, a key of `KEYS`.
        rank: this rank.
        step: number of optimizer steps before this one.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        keys = ", ".join(KEYS.get(stage, ()))
        text = str(error).strip().split("\n")[0]
        raise StageOutOfMemoryError(
            f"out of memory in the stage {stage!r} of step {step + 1}, on rank {rank}: {text}"
            + (f"; less memory is needed with {keys}" if keys else "")
            + "; train.estimate=true shows what needs how much"
        ) from None


class SmallerPasses(Protocol):
    """What `retried` needs of a module."""

    trainer: Trainer
    retry_on_oom: bool

    def shrink_passes(self) -> str | None:
        """Halves the passes and returns the keys with new values; None: they are smallest."""

    def discard_gradients(self) -> None:
        """Discards the gradients of the failed attempt."""


def retried(module: SmallerPasses, attempt: Callable[[], T]) -> T:
    """Returns `attempt()`; if it runs out of memory on any rank, all ranks repeat it in parts.

    Args:
        module: the module whose passes are halved. Without `retry_on_oom`, nothing is repeated.
        attempt: computes a part of the step from the current sizes of the passes. It must not
            communicate with other ranks.

    Raises:
        StageOutOfMemoryError: the passes cannot be smaller.
    """
    if not module.retry_on_oom:
        return attempt()
    while True:
        result: list[T] = []
        failure = None
        try:
            result = [attempt()]
        except StageOutOfMemoryError as error:
            failure = str(error)
        if is_true_on_all_ranks(module.trainer, failure is None):
            return result[0]
        del result  # of a rank that succeeded
        module.discard_gradients()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        sizes = module.shrink_passes()
        if sizes is None:
            raise StageOutOfMemoryError(failure or "another rank is out of memory, see its message")
        log.warning(
            "%s. The step is repeated, and training continues, with %s (train.retry_on_oom)",
            *(failure or "another rank is out of memory", sizes),
        )
