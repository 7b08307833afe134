"""Saves only trained weights in checkpoints, with a fingerprint of the initial weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from tvg.model.policy import Policy
from tvg.model.sharding import ShardedModule
from tvg.training.nonfinite import SkippedSteps
from tvg.training.stopping import StoppableModule

_FINGERPRINT_VALUES = 4096  # per tensor


class TrainedStateModule(StoppableModule):
    """A module that saves only trained weights and refuses checkpoints of other initial weights.

    Attributes:
        policy: the model that is trained, completely or in part.
        initial_fingerprint: fingerprint of the policy before any step.
        skipped_steps: counts of skipped steps.
    """

    policy: Policy
    initial_fingerprint: str
    skipped_steps: SkippedSteps

    @property
    def strict_loading(self) -> bool:
        return False  # checkpoints lack the frozen weights, which the initial model contains

    @strict_loading.setter
    def strict_loading(self, value: bool) -> None:
        raise AttributeError("strict_loading cannot be set: it is always False")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = self._trained()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in trained}
        checkpoint["initial_fingerprint"] = self.initial_fingerprint
        checkpoint["skipped_steps"] = self.skipped_steps.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        expected = self._trained()
        # DeepSpeed stores weights in separate files and checks them.
        missing = sorted(expected - set(checkpoint.get("state_dict", expected)))
        if missing:
            raise ValueError(
                f"resume: the checkpoint lacks {len(missing)} weights that are trained, e.g. "
                f"{missing[0]}: it belongs to a run with other settings (model.adapter, "
                "model.freeze_*)"
            )
        if checkpoint.get("initial_fingerprint") != self.initial_fingerprint:
            raise ValueError(
                "resume: the checkpoint belongs to a run that started from other weights than "
                f"those in model.path (fingerprint {checkpoint.get('initial_fingerprint')}, "
                f"now {self.initial_fingerprint})"
            )
        if "skipped_steps" in checkpoint:  # older checkpoints lack it
            self.skipped_steps.load_state_dict(checkpoint["skipped_steps"])

    def _trained(self) -> set[str]:
        """Returns the state-dict names of the trained weights; model.path contains the others."""
        return trained_names(self)


def trained_names(module: nn.Module) -> set[str]:
    """Returns the state-dict names of all weights that are not frozen."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.requires_grad}


def fingerprint(policy: ShardedModule) -> str:
    """Returns a short hash of the weights, from a few thousand values of each tensor.

    The hash is of the values' bytes, so it is the same on every device and for any number of
    threads. It is cheap enough to compute at every start. If the weights are sharded, all ranks
    have to call this together.
    """
    digest = hashlib.sha256()
    for name, value in policy.full_state():
        flat = value.detach().flatten()
        picked = flat[:: max(1, len(flat) // _FINGERPRINT_VALUES)].cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
