"""The frozen reference model of the KL penalty."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tvg.model.adapters import drop_adapters
from tvg.model.policy import Policy
from tvg.training.reference_dtype import to_half


def frozen_copy(policy: Policy, *, dtype: torch.dtype | None = None, pin: bool = False) -> Policy:
    """Returns a frozen copy of the initial policy; shares the weights that are never trained.

    Adapters initially have no effect, so the reference is the model without them.

    Args:
        policy: the policy, on the CPU.
        dtype: dtype of the copied weights of linear layers, see `to_half`; None: the policy's.
        pin: keep the copied weights in pinned memory, if there is a GPU.
    """
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad}
    reference = copy.deepcopy(policy, memo=dict(shared))
    drop_adapters(reference)
    if dtype is not None:
        to_half(reference.model, dtype, shared=shared)
    if pin:
        for parameter in reference.parameters():
            if id(parameter) not in shared:
                parameter.data = _pinned(parameter.data)
    return reference.requires_grad_(False).eval()


@contextmanager
def in_use(
    reference: Policy, policy: Policy, *, device: torch.device, offload: bool
) -> Iterator[Policy]:
    """Yields the reference on `device`.

    With `offload`, the weights that the reference does not share with the policy are on the CPU
    before and after.
    """
    if not offload:
        yield reference
        return
    shared = {id(p) for p in policy.parameters()}
    own = [p for p in reference.parameters() if id(p) not in shared]
    _follow(reference, own, policy, device)
    at_rest = [parameter.data for parameter in own]
    for parameter, kept in zip(own, at_rest, strict=True):
        parameter.data = kept.to(device, non_blocking=True)
    try:
        yield reference
    finally:
        for parameter, kept in zip(own, at_rest, strict=True):
            parameter.data = kept  # the weights are unchanged: no copy from the device


def _follow(
    reference: Policy, own: Sequence[nn.Parameter], policy: Policy, device: torch.device
) -> None:
    """Repeats what a strategy has done to the policy: moved its buffers, cast its weights.

    An offloaded reference is no submodule of the trained module, so strategies do not change it.
    """
    trained = [p.dtype for p in policy.parameters() if p.requires_grad]
    widest = max(trained, key=lambda dtype: dtype.itemsize, default=None)
    for parameter in own:
        kept = parameter.data.to("cpu")
        if widest is not None and kept.dtype.itemsize > widest.itemsize:
            kept = _pinned(kept.to(widest))  # DeepSpeed casts all weights
        parameter.data = kept
    for module in reference.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.device != device:
                setattr(module, name, buffer.to(device))


def _pinned(tensor: Tensor) -> Tensor:
    """Returns the tensor in pinned memory, from which a GPU copies faster; the same without GPU."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
