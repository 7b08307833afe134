"""The frozen reference model of the KL penalty."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tvg.model.adapters import drop_adapters
from tvg.model.policy import Policy


def frozen_copy(policy: Policy) -> Policy:
    """Returns a frozen copy of the initial policy; shares the weights that are never trained.

    Adapters initially have no effect, so the reference is the model without them.
    """
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad}
    reference = copy.deepcopy(policy, memo=dict(shared))
    drop_adapters(reference)
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
    at_rest = [parameter.data.to("cpu") for parameter in own]
    for parameter, kept in zip(own, at_rest, strict=True):
        parameter.data = kept.to(device, non_blocking=True)
    try:
        yield reference
    finally:
        for parameter, kept in zip(own, at_rest, strict=True):
            parameter.data = kept  # the weights are unchanged: no copy from the device
