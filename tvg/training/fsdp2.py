"""PyTorch's FSDP2 (`fully_shard`): strategy, adapter, and sharded weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tvg.model.families import tower
from tvg.model.policy import FORWARD_METHODS, Policy
from tvg.model.weight_reader import shard_rows
from tvg.training.folder_checkpoint import whole_folder_of_ranks
from tvg.training.ranks import is_true_on_all_ranks
from tvg.training.strategy_adapter import StepResult
from tvg.training.trained_state import trained_names

META_FILE = "meta.pt"  # everything in a checkpoint except weights and optimizer states


class FSDP2Strategy(ModelParallelStrategy):
    """Shards weights, gradients and optimizer states over all ranks.

    Checkpoints are folders to which each rank writes its shards. They contain the trained weights
    only, and can be read by another number of ranks.

    Args:
        sync_each_micro_batch: reduce gradients after every micro-batch. A rank then stores only its
            share of the gradients. False reduces them once per step: less communication, but every
            rank stores the gradients of all trained weights.
        timeout: the run ends if a rank does not answer for this time.
    """

    def __init__(self, *, sync_each_micro_batch: bool, timeout: timedelta) -> None:
        super().__init__(timeout=timeout)
        self.sync_each_micro_batch = sync_each_micro_batch

    def mesh_of_ranks(self) -> DeviceMesh:
        """Returns a mesh with one dimension that contains all ranks."""
        return init_device_mesh(self.root_device.type, (self.world_size,))

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        rest = dict(checkpoint)
        state = {"state_dict": rest.pop("state_dict")}
        for number, states in enumerate(rest.pop("optimizer_states", [])):
            state[_optimizer_key(number)] = states
        with whole_folder_of_ranks(self, filepath) as folder:
            dcp.save(state, checkpoint_id=folder)
            if self.is_global_zero:
                torch.save(rest, folder / META_FILE)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        folder = Path(self.broadcast(str(checkpoint_path)))
        if not (folder / META_FILE).is_file():
            raise ValueError(
                f"resume: {folder} is not a checkpoint of strategy=fsdp2 (it has no {META_FILE}): "
                "continue the run with the strategy that wrote it"
            )
        model = self.model
        assert model is not None
        rest: dict[str, Any] = torch.load(
            folder / META_FILE, map_location="cpu", weights_only=weights_only
        )
        trained = trained_names(model)
        state = {n: v for n, v in get_model_state_dict(model).items() if n in trained}
        dcp.load({"state_dict": state}, checkpoint_id=folder)
        model.load_state_dict(state, strict=False)
        for number, optimizer in enumerate(self.optimizers):
            key = _optimizer_key(number)
            states = {key: get_optimizer_state_dict(model, optimizer)}
            dcp.load(states, checkpoint_id=folder)
            options = StateDictOptions(cpu_offload=True)
            set_optimizer_state_dict(
                model, optimizer, optim_state_dict=states[key], options=options
            )
        return rest


def _optimizer_key(number: int) -> str:
    return f"optimizer_{number}"


class FullySharded:
    """Weights sharded by `fully_shard`; see `tvg.model.sharding.Sharding`."""

    def gather(self, module: nn.Module) -> None:
        assert isinstance(module, FSDPModule)
        module.set_reshard_after_forward(False)
        for part in _sharded_parts(module):
            part.unshard()

    def release(self, module: nn.Module) -> None:
        assert isinstance(module, FSDPModule)
        _reshard_blocks_after_forward(module)
        for part in _sharded_parts(module):
            part.reshard()

    def full_state(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for name, value in sorted(module.state_dict().items()):
            yield name, value.full_tensor() if isinstance(value, DTensor) else value


def _sharded_parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _reshard_blocks_after_forward(policy: FSDPModule) -> None:
    """Frees each block's weights after its forward pass; keeps the root's for the backward."""
    policy.set_reshard_after_forward(True)
    policy.set_reshard_after_forward(False, recurse=False)


def shard_policy(policy: Policy, mesh: DeviceMesh, precision: MixedPrecisionPolicy) -> None:
    """Shards a policy in place: each block separately, then everything else together.

    Args:
        policy: a policy with complete weights on every rank; or one that is already sharded, which
            is not changed.
        mesh: one dimension with all ranks.
        precision: dtypes of gathered weights and of the gradients' reduction.
    """
    if isinstance(policy, FSDPModule):
        return
    for block in blocks(policy.model):
        fully_shard(block, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    for name in FORWARD_METHODS:
        if name != "forward":  # is registered by `fully_shard`
            register_fsdp_forward_method(policy, name)
    policy.sharding = FullySharded()
    assert isinstance(policy, FSDPModule)
    _reshard_blocks_after_forward(policy)


def load_shards(policy: Policy, mesh: DeviceMesh, device: torch.device) -> None:
    """Reads this rank's part of the weights of a sharded policy that was built without weights.

    Args:
        policy: a sharded policy; nothing is done if it already has its weights.
        mesh: one dimension with all ranks.
        device: where the weights are stored.
    """
    reader = policy.weights
    if reader is None:
        return
    buffers = {name: buffer.clone() for name, buffer in policy.named_buffers()}
    policy.to_empty(device=device)
    with torch.no_grad():
        for name, buffer in policy.named_buffers():
            buffer.copy_(buffers[name])
        for name, parameter in policy.named_parameters():
            assert isinstance(parameter, DTensor)
            local = parameter.to_local()
            rows = shard_rows(len(parameter), rank=mesh.get_local_rank(), num_ranks=mesh.size())
            assert len(local) == len(rows), f"{name}: {len(local)} rows, expected {rows}"
            if rows:
                local.copy_(reader.rows(name.removeprefix("model."), rows.start, rows.stop))
    policy.weights = None


def blocks(model: Any) -> list[nn.Module]:
    """Returns the decoder layers of the language model and the blocks of the vision trunk."""
    return [*model.model.language_model.layers, *_trunk_blocks(model)]


def _trunk_blocks(model: Any) -> list[nn.Module]:
    """Returns the modules in the tower's longest list, which are the trunk's blocks."""
    lists = [part for part in tower(model).modules() if isinstance(part, nn.ModuleList)]
    return list(max(lists, key=len, default=()))


def mixed_precision(precision: Any) -> MixedPrecisionPolicy:
    """Returns the dtypes for a value of `trainer.precision`; gradients are reduced in float32."""
    if not str(precision).startswith("bf16"):
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


class FSDP2Adapter:
    """Adapter for FSDP2: gradients are sharded like the weights."""

    def configure(self, trainer: Trainer, *, max_grad_norm: float | None) -> None:
        pass

    def shard(self, trainer: Trainer, policies: Sequence[Policy]) -> None:
        strategy = trainer.strategy
        assert isinstance(strategy, FSDP2Strategy)
        precision = mixed_precision(trainer.precision)
        for policy in policies:
            mesh = strategy.mesh_of_ranks()
            shard_policy(policy, mesh, precision)
            load_shards(policy, mesh, strategy.root_device)

    def gradient_sync(self, trainer: Trainer, *, is_last: bool) -> AbstractContextManager[Any]:
        assert isinstance(trainer.strategy, FSDP2Strategy)
        is_synced = is_last or trainer.strategy.sync_each_micro_batch
        for part in _sharded_parts(trainer.lightning_module):
            part.set_requires_gradient_sync(is_synced, recurse=False)
        return nullcontext()

    def step(
        self,
        trainer: Trainer,
        optimizer: Optimizer,
        parameters: Iterable[nn.Parameter],
        *,
        loss: Tensor,
        max_grad_norm: float | None,
    ) -> StepResult:
        trained = [p for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # over all ranks
        if max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(trained, max_grad_norm, norm)
        is_finite = bool(norm.isfinite() & loss.isfinite())
        is_skipped = not is_true_on_all_ranks(trainer, is_finite)
        if is_skipped:  # without gradients, a step changes neither weights nor moments
            optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        return StepResult(norm, is_skipped)
