"""Reads and sets the attention function in a transformers config; no other file does this.

Transformers sets it for a whole model (`set_attn_implementation`), not for modules with their own
config, and has no public way to read it.
"""

from __future__ import annotations

from typing import Any


def chosen_attention(config: Any) -> str:
    """The name of the attention function, e.g. "sdpa"."""
    return str(config._attn_implementation)


def choose_attention(config: Any, name: str) -> None:
    """Makes modules with this config call the function registered as `name`."""
    config._attn_implementation_internal = name
