"""The frozen model that a KL penalty measures the policy's distance from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tvg.model.adapters import drop_adapters
from tvg.model.policy import Policy


def frozen_copy(policy: Policy) -> Policy:
    """Frozen copy of the initial policy; weights that are never trained are shared, not copied.

    Adapters start as nothing, so the reference has none: it is the weights under them.
    """
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad}
    reference = copy.deepcopy(policy, memo=dict(shared))
    drop_adapters(reference)
    return reference.requires_grad_(False).eval()


@contextmanager
def in_use(
    reference: Policy, policy: Policy, *, device: torch.device, offload: bool
) -> Iterator[Policy]:
    """Puts the reference on the device; with `offload` its own weights are on the CPU otherwise."""
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
            parameter.data = kept  # nothing has changed it: no way back is needed
