"""Contains all uses of OmegaConf's private members."""

from __future__ import annotations

from omegaconf import Node


def full_key(node: Node) -> str:
    """Returns the dotted path of a node in its config; empty for the root."""
    return str(node._get_full_key(None))
