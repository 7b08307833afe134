"""Reads and sets the attention function in a transformers config; no other file does this.

transformers can set the function for an entire model (`set_attn_implementation`), but not for
modules with a separate config. It has no public way to read the function.
"""

from __future__ import annotations

from typing import Any


def chosen_attention(config: Any) -> str:
    """Returns the name of the attention function, e.g. "sdpa"."""
    return str(config._attn_implementation)


def choose_attention(config: Any, name: str) -> None:
    """Makes modules with this config call the function registered as `name`."""
    config._attn_implementation_internal = name
