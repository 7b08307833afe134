"""The attention function that a transformers config names: the one file that knows how it does.

Transformers chooses it for a whole model (`set_attn_implementation`), not for modules that hold a
config of their own, and has no public way to read it.
"""

from __future__ import annotations

from typing import Any


def chosen_attention(config: Any) -> str:
    """The name of the attention function, e.g. "sdpa"."""
    return str(config._attn_implementation)


def choose_attention(config: Any, name: str) -> None:
    """Makes modules that hold this config call the function registered under that name."""
    config._attn_implementation_internal = name
