"""Estimates the bytes that a forward pass saves for backward, and its temporary memory.

The counts follow the model's code, tensor by tensor; tests compare them with what torch saves.
Masks, indices and tensors with one number per token are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tvg.model.shape import ModelShape, Parameters

HEAD_CHUNK = 1024  # tokens whose logits exist at once; see tvg.core.logprobs
FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes per number."""

    weight: int  # stored weights
    compute: int  # inputs and outputs of matrix multiplications; half precision under autocast
    stream: int  # states between layers, and outputs of norms


@dataclass(frozen=True, kw_only=True)
class Row:
    """The sizes of one pass through the model.

    Attributes:
        prompts: number of prompts, b.
        completions: completions per prompt, G.
        prompt_tokens: tokens per prompt, P.
        completion_tokens: tokens per completion, C.
        patches: patches of one prompt's clip.
        forward: "shared_prefix" computes b * (P + G * C) tokens, "repeated" b * G * (P + C).
    """

    prompts: int
    completions: int
    prompt_tokens: int
    completion_tokens: int
    patches: int
    forward: Literal["shared_prefix", "repeated"]

    @property
    def copies(self) -> int:
        """Number of times that each prompt and its clip occur in the row."""
        return self.completions if self.forward == "repeated" else 1

    @property
    def drawn(self) -> int:
        """Number of completion tokens."""
        return self.prompts * self.completions * self.completion_tokens

    @property
    def tokens(self) -> int:
        return self.prompts * self.copies * self.prompt_tokens + self.drawn

    @property
    def read(self) -> int:
        """Number of tokens for which the last layer's MLP and norm are computed."""
        return self.prompts + self.drawn if self.forward == "shared_prefix" else self.tokens


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of one forward and backward pass."""

    kept: int  # saved by the forward pass until backward has used them
    recomputed: int  # the layer that gradient checkpointing recomputes, in backward
    working: int  # gradients inside one layer, in backward
    head: int  # chunks of logits, and the accumulated gradient of the head's weight

    @property
    def total(self) -> int:
        return self.kept + self.recomputed + max(self.working, self.head)


def activations(
    shape: ModelShape,
    params: Parameters,
    row: Row,
    precision: Precision,
    *,
    gradient_checkpointing: bool,
) -> Activations:
    """Estimates the bytes of one forward and backward pass of the policy over a row."""
    layer = row.tokens * layer_bytes(shape, row, precision)
    unread = (row.tokens - row.read) * _mlp_bytes(shape, precision)  # skipped in the last layer
    patches = row.prompts * row.copies * row.patches
    block = patches * block_bytes(shape, precision) if params.is_trunk_trained else 0
    num_blocks = shape.vision_layers if params.is_trunk_trained else 0
    ends = _ends_bytes(shape, params, row, precision)
    if gradient_checkpointing:
        kept = row.tokens * shape.layers * shape.hidden * precision.stream
        kept += patches * num_blocks * shape.vision_hidden * precision.stream
    else:
        kept = layer * shape.layers - unread + block * num_blocks
    return Activations(
        kept=kept + ends,
        recomputed=max(layer, block) if gradient_checkpointing else 0,
        working=row.tokens * (3 * shape.mlp * precision.compute + 3 * shape.hidden * FLOAT),
        head=head_bytes(shape, params, row, precision),
    )


def layer_bytes(shape: ModelShape, row: Row, precision: Precision) -> int:
    """Returns the bytes per token in a language layer: norm, attention and MLP.

    Attention saves query, key, value and output, and one float32 log-sum-exp per head.
    transformers' attention, which "repeated" uses, copies keys and values for every query head that
    shares them, and copies the output once.
    """
    if row.forward == "shared_prefix":
        attention = 2 * shape.queries + 2 * shape.keys
    else:
        attention = 5 * shape.queries
    attention = attention * precision.compute + shape.heads * FLOAT
    return _norm_bytes(shape.hidden, precision) + attention + _mlp_bytes(shape, precision)


def block_bytes(shape: ModelShape, precision: Precision) -> int:
    """Returns the bytes per patch in a vision-trunk block, with the reordering of windows."""
    width = shape.vision_hidden
    attention = 5 * width * precision.compute + shape.heads * FLOAT
    # For each linear layer but the last: its output, and the output of the activation (and gate).
    mlp = 2 * (shape.vision_mlp_products - 1) * shape.vision_mlp * precision.compute
    return 2 * _norm_bytes(width, precision) + attention + mlp


def head_bytes(shape: ModelShape, params: Parameters, row: Row, precision: Precision) -> int:
    """Returns bytes of two chunks of float32 logits and two copies of a trained head's gradient."""
    chunk = min(HEAD_CHUNK, row.drawn) * shape.words
    weight = shape.words * shape.hidden if params.is_head_trained else 0
    return 2 * FLOAT * (chunk + weight)


def forward_bytes(shape: ModelShape, tokens: int, precision: Precision) -> int:
    """Returns the peak bytes of a pass without gradients: those at a layer's widest point."""
    wide = 3 * shape.mlp * precision.compute
    return tokens * (wide + shape.hidden * (2 * precision.stream + FLOAT))


def trunk_forward_bytes(shape: ModelShape, patches: int, precision: Precision) -> int:
    """Returns the peak bytes of a pass of the vision trunk without gradients."""
    wide = 3 * shape.vision_mlp * precision.compute
    return patches * (wide + shape.vision_hidden * (2 * precision.stream + FLOAT))


def _ends_bytes(shape: ModelShape, params: Parameters, row: Row, precision: Precision) -> int:
    """Returns the bytes outside the layers: mergers, last norm and the head's input."""
    patches = row.prompts * row.copies * row.patches
    merger = 0
    if params.is_merger_trained or params.is_trunk_trained:
        # The hidden layer of a merger is as wide as the patches that it merges.
        norm = _norm_bytes(shape.vision_hidden, precision)
        merger = patches * (norm + 2 * shape.vision_hidden * precision.compute) * shape.mergers
    if params.is_trunk_trained:
        merger += patches * shape.patch_values * precision.compute
    norm = row.read * shape.hidden * (FLOAT + precision.stream)
    return merger + norm + row.drawn * shape.hidden * precision.stream


def _mlp_bytes(shape: ModelShape, precision: Precision) -> int:
    """Returns the bytes per token of norm, gate, activated gate, up projection, and product."""
    return _norm_bytes(shape.hidden, precision) + 4 * shape.mlp * precision.compute


def _norm_bytes(width: int, precision: Precision) -> int:
    """Returns the bytes of a norm: float32 input, normalised states, and weighted output."""
    return width * (FLOAT + precision.stream + precision.compute)
