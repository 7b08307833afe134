"""A training run as the numbers that its memory follows from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tvg.model.activations import FLOAT, Precision, Row
from tvg.model.shape import ModelShape, Parameters

BYTES_8BIT = 2 + 2 * FLOAT / 256  # two states in 8 bits, each with a scale for 256 numbers


@dataclass(frozen=True, kw_only=True)
class OptimizerCost:
    """Bytes of a trained parameter."""

    states: float
    scratch: float  # while it steps
    is_on_cpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Who holds what: ZeRO's stage (0: everybody everything), and what rests in CPU memory."""

    devices: int = 1
    stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False

    def share(self, least_stage: int) -> int:
        """Among how many devices something is shared out from that stage on."""
        return self.devices if self.stage >= least_stage else 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run in numbers; counts are those of one GPU and one optimizer step."""

    shape: ModelShape
    params: Parameters
    precision: Precision
    is_autocast: bool  # weights are copied to half precision while a step lasts
    trained_bytes: int  # of one trained number; adapters are float32 beside half-precision weights
    has_masters: bool  # half-precision weights with float32 ones beside them, in the optimizer
    optimizer: OptimizerCost
    sharding: Sharding
    gradient_copies: int  # 2 where DDP keeps buckets of its own
    has_reference: bool
    offload_reference: bool
    gradient_checkpointing: bool
    forward: Literal["shared_prefix", "repeated"]
    samples_shared: bool  # the sampler holds a prompt once, not once a completion
    is_encoded: bool  # clips come as features of the trunk
    prompts: int  # of a step
    prompts_per_call: int | None  # of the sampler
    group_size: int  # 1 and no sampling: supervised
    micro_prompts: int
    micro_completions: int
    prompt_tokens: int
    completion_tokens: int
    patches: int  # of one prompt's clip
    eval_prompts: int = 0  # of a batch of validation or rating, one greedy completion each; 0: none
    eval_tokens: int = 0  # longest of those completions

    @property
    def prompts_of_all(self) -> int:
        """Prompts of one optimizer step over all devices."""
        return self.prompts * self.sharding.devices

    @property
    def checkpoint_bytes(self) -> float:
        """Bytes of a checkpoint on disk: trained weights, their optimizer states and masters.

        DeepSpeed writes frozen weights, too.
        """
        masters = FLOAT if self.has_masters else 0
        trained = self.params.trained * (self.trained_bytes + self.optimizer.states + masters)
        frozen = self.params.frozen * self.precision.weight if self.sharding.stage else 0
        return trained + frozen

    def steps_per_epoch(self, num_examples: int) -> int:
        """Optimizer steps that show every example; the last may take fewer prompts."""
        per_device = -(-num_examples // self.sharding.devices)
        return -(-per_device // self.prompts)

    @property
    def row(self) -> Row:
        """The largest micro-batch."""
        return Row(
            prompts=min(self.micro_prompts, self.prompts),
            completions=min(self.micro_completions, self.group_size),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            patches=self.patches,
            forward=self.forward,
        )


def optimizer_cost(target: str, settings: Mapping[str, Any], *, number: int) -> OptimizerCost:
    """The cost of an optimizer, by the name of its class or factory; unknown ones count as AdamW.

    Args:
        target: a dotted path.
        settings: what it is given.
        number: bytes of one number of the weights that it steps.
    """
    name = target.lower()
    if "8bit" in name:
        return OptimizerCost(states=BYTES_8BIT, scratch=0)
    if "cpuadam" in name:
        return OptimizerCost(states=2 * FLOAT, scratch=0, is_on_cpu=True)
    is_stepped_alone = bool(settings.get("fused")) or settings.get("foreach") is False
    scratch = 0 if is_stepped_alone else number  # torch's foreach: one temporary of all weights
    if name.endswith(".sgd"):
        return OptimizerCost(states=number if settings.get("momentum") else 0, scratch=scratch)
    return OptimizerCost(states=2 * number, scratch=scratch)
