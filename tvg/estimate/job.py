"""Describes a training run by the numbers that determine its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tvg.estimate.activations import FLOAT, Precision, Row
from tvg.model.shape import ModelShape, Parameters

BYTES_8BIT = 2 + 2 * FLOAT / 256  # two states in 8 bits, each with a scale for 256 numbers


@dataclass(frozen=True, kw_only=True)
class OptimizerCost:
    """Bytes per trained parameter."""

    states: float
    scratch: float  # temporary, during the step
    is_on_cpu: bool = False


Engine = Literal["torch", "fsdp2", "deepspeed"]  # torch: one device, or DDP


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How devices share the states of a run.

    Attributes:
        devices: number of devices.
        devices_per_node: devices whose processes share the memory of one host.
        engine: what distributes the states.
        stage: ZeRO stage, 0 for no sharding. FSDP2 shards as much as stage 3.
        offload_optimizer: optimizer states are in host memory.
        offload_parameters: weights are in host memory.
        bucket: numbers in a communication buffer of DeepSpeed.
        live: numbers of gathered weights that stage 3 keeps.
        reduces_once: FSDP2 stores complete gradients until the last micro-batch.
    """

    devices: int = 1
    devices_per_node: int = 1
    engine: Engine = "torch"
    stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bucket: int = 0
    live: int = 0
    reduces_once: bool = False

    def share(self, least_stage: int) -> int:
        """Returns the number of shards of a state that is sharded from stage `least_stage` on."""
        return self.devices if self.stage >= least_stage else 1

    @property
    def shards_weights(self) -> bool:
        return self.stage >= 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run in numbers; counts are per GPU and optimizer step."""

    shape: ModelShape
    params: Parameters
    precision: Precision
    is_autocast: bool  # a pass copies the weights that it uses to half precision
    trained_bytes: int  # per trained number; adapters are float32 even with half-precision weights
    has_masters: bool  # the optimizer keeps float32 masters of half-precision weights
    optimizer: OptimizerCost
    sharding: Sharding
    gradient_copies: int  # 2 if DDP copies gradients into buckets
    has_reference: bool
    offload_reference: bool
    reference_bytes: int = FLOAT  # per weight of the reference that the policy does not share
    # Weights of the reference that objective.reference_dtype leaves in the policy's precision.
    wide_reference: int = 0
    gradient_checkpointing: bool
    forward: Literal["shared_prefix", "repeated"]
    samples_shared: bool  # the sampler stores a prompt once, not once per completion
    is_encoded: bool  # clips are loaded as features of the vision trunk
    prompts: int  # prompts per step
    prompts_per_call: int | None  # prompts that the sampler processes together
    group_size: int  # 1: supervised, no sampling
    micro_prompts: int
    micro_completions: int
    prompt_tokens: int
    completion_tokens: int
    patches: int  # patches of one prompt's clip
    eval_prompts: int = 0  # per validation or scoring batch, one greedy completion each; 0: none
    eval_tokens: int = 0  # length limit of those completions
    saves_frozen: bool = False  # checkpoints contain frozen weights
    kept_checkpoints: int = 1  # on disk, including one that is being written
    largest_weight: int = 0  # numbers in the largest trained tensor
    loaded_bytes: int = FLOAT  # per weight, as model.dtype loads it

    @property
    def prompts_of_all(self) -> int:
        """Prompts of one optimizer step over all devices."""
        return self.prompts * self.sharding.devices

    @property
    def own_reference(self) -> int:
        """Weights of the reference that the policy does not share; it has no adapters."""
        return self.params.trained - self.params.adapters if self.has_reference else 0

    @property
    def reference_size(self) -> int:
        """Bytes of `own_reference` in one copy."""
        wide = min(self.wide_reference, self.own_reference)
        narrow = min(self.reference_bytes, self.trained_bytes)
        return wide * self.trained_bytes + (self.own_reference - wide) * narrow

    @property
    def state_bytes(self) -> float:
        """Bytes of optimizer states and float32 masters per trained parameter."""
        return self.optimizer.states + (FLOAT if self.has_masters else 0)

    @property
    def num_micro_batches(self) -> int:
        """Forward and backward passes per optimizer step and device."""
        prompts = -(-self.prompts // self.row.prompts)
        return prompts * -(-self.group_size // self.row.completions)

    @property
    def checkpoint_bytes(self) -> float:
        """Bytes of a checkpoint on disk: trained weights, their optimizer states and masters.

        DeepSpeed also writes the reference and frozen weights, unless
        `strategy.exclude_frozen_parameters` is true.
        """
        trained = self.params.trained * (self.trained_bytes + self.state_bytes)
        if not self.saves_frozen:
            return trained
        return trained + self.params.frozen * self.precision.weight + self.reference_size

    def steps_per_epoch(self, num_examples: int) -> int:
        """Returns the optimizer steps of one epoch; the last may have fewer prompts."""
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
    """Returns the cost of an optimizer by its name; unknown optimizers count as AdamW.

    Args:
        target: dotted path of the class or factory.
        settings: keyword arguments of the optimizer.
        number: bytes per number of the optimized weights.
    """
    name = target.lower()
    if "8bit" in name:
        return OptimizerCost(states=BYTES_8BIT, scratch=0)
    if "cpuadam" in name:
        return OptimizerCost(states=2 * FLOAT, scratch=0, is_on_cpu=True)
    # `optimizers.adamw` is fused on GPUs by default.
    is_fused = settings.get("fused", name.endswith("optimizers.adamw"))
    is_stepped_alone = bool(is_fused) or settings.get("foreach") is False
    scratch = 0 if is_stepped_alone else number  # torch's foreach: a temporary of the weights' size
    if name.endswith(".sgd"):
        return OptimizerCost(states=number if settings.get("momentum") else 0, scratch=scratch)
    return OptimizerCost(states=2 * number, scratch=scratch)
