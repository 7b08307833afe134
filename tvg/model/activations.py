"""Bytes that a forward pass keeps for its backward, and that its work needs for a moment.

Counted from the model's own code, tensor by tensor; tests hold it against what torch keeps. Masks,
indices and one number a token are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tvg.model.shape import ModelShape, Parameters

HEAD_CHUNK = 1024  # tokens whose logits exist at once; see tvg.core.logprobs
FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes of one number."""

    weight: int  # as stored
    compute: int  # what matrix products read and write; half under autocast
    stream: int  # the states between layers, and what norms give


@dataclass(frozen=True, kw_only=True)
class Row:
    """The rows of one pass through the model.

    Attributes:
        prompts: b of them.
        completions: of each of the prompts, G.
        prompt_tokens: P.
        completion_tokens: C.
        patches: of one prompt's clip.
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
        """How many times each prompt and its clip stand in the row."""
        return self.completions if self.forward == "repeated" else 1

    @property
    def drawn(self) -> int:
        """Completion tokens."""
        return self.prompts * self.completions * self.completion_tokens

    @property
    def tokens(self) -> int:
        return self.prompts * self.copies * self.prompt_tokens + self.drawn

    @property
    def read(self) -> int:
        """Tokens for which the last layer's MLP and norm are computed."""
        return self.prompts + self.drawn if self.forward == "shared_prefix" else self.tokens


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes."""

    kept: int  # from the forward pass until backward has passed them
    recomputed: int  # of the one layer that checkpointing computes again, in backward
    working: int  # gradients of one layer's insides, in backward
    head: int  # chunks of logits, and the gradient of the head's weight while it is summed up

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
    """Of one forward and backward pass of the policy over a row."""
    layer = row.tokens * layer_bytes(shape, row, precision)
    unread = (row.tokens - row.read) * _mlp_bytes(shape, precision)  # of the last layer
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
    """A token in a language layer: its attention with the norm before it, and its MLP.

    Attention keeps query, key, value and output, and one float32 log-sum-exp a head. transformers'
    own attention, which "repeated" uses, copies keys and values for every query head that shares
    them, and the output once more.
    """
    if row.forward == "shared_prefix":
        attention = 2 * shape.queries + 2 * shape.keys
    else:
        attention = 5 * shape.queries
    attention = attention * precision.compute + shape.heads * FLOAT
    return _norm_bytes(shape.hidden, precision) + attention + _mlp_bytes(shape, precision)


def block_bytes(shape: ModelShape, precision: Precision) -> int:
    """A patch in a block of the vision trunk, its windows reordered before and after attention."""
    width = shape.vision_hidden
    attention = 5 * width * precision.compute + shape.heads * FLOAT
    # Of each product but the last its output, and what the activation (and a gate) makes of it.
    mlp = 2 * (shape.vision_mlp_products - 1) * shape.vision_mlp * precision.compute
    return 2 * _norm_bytes(width, precision) + attention + mlp


def head_bytes(shape: ModelShape, params: Parameters, row: Row, precision: Precision) -> int:
    """Two chunks of float32 logits, and twice the gradient of the head where it is trained."""
    chunk = min(HEAD_CHUNK, row.drawn) * shape.words
    weight = shape.words * shape.hidden if params.is_head_trained else 0
    return 2 * FLOAT * (chunk + weight)


def forward_bytes(shape: ModelShape, tokens: int, precision: Precision) -> int:
    """Peak bytes of a pass without gradients over so many tokens: the widest point of a layer."""
    wide = 3 * shape.mlp * precision.compute
    return tokens * (wide + shape.hidden * (2 * precision.stream + FLOAT))


def trunk_forward_bytes(shape: ModelShape, patches: int, precision: Precision) -> int:
    """The same for the vision trunk."""
    wide = 3 * shape.vision_mlp * precision.compute
    return patches * (wide + shape.vision_hidden * (2 * precision.stream + FLOAT))


def _ends_bytes(shape: ModelShape, params: Parameters, row: Row, precision: Precision) -> int:
    """Mergers before the layers; last norm and what the head reads after them."""
    patches = row.prompts * row.copies * row.patches
    merger = 0
    if params.is_merger_trained or params.is_trunk_trained:
        # The hidden layer of a merger is as wide as the patches that it joins.
        norm = _norm_bytes(shape.vision_hidden, precision)
        merger = patches * (norm + 2 * shape.vision_hidden * precision.compute) * shape.mergers
    if params.is_trunk_trained:
        merger += patches * shape.patch_values * precision.compute
    norm = row.read * shape.hidden * (FLOAT + precision.stream)
    return merger + norm + row.drawn * shape.hidden * precision.stream


def _mlp_bytes(shape: ModelShape, precision: Precision) -> int:
    """Norm, gate, its activation, up, and their product."""
    return _norm_bytes(shape.hidden, precision) + 4 * shape.mlp * precision.compute


def _norm_bytes(width: int, precision: Precision) -> int:
    """Its input in float32, scaled to norm 1, and weighted: what the products after it read."""
    return width * (FLOAT + precision.stream + precision.compute)
