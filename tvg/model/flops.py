"""The floating-point operations that a GRPO step needs, whatever way it is computed.

What is counted is the least that the step can do: every prompt once (its vision trunk, its prefill,
its place in the policy's and the reference's forward), nothing recomputed, no padding. Repeating
prompts or recomputing activations makes a run slower, and not its count higher: the share of a
card's peak that this count comes to is the model FLOPs utilisation of PaLM (arXiv 2204.02311,
appendix B). A product of matrices [m, k] and [k, n] is 2 m k n operations; norms, rotations,
softmax and the optimizer are left out, being a thousandth of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvg.model.policy import Policy
from tvg.model.shape import ModelShape, count_parameters, shape_of
from tvg.types import RolloutBatch


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """The work of one step of one rank.

    Attributes:
        prompts: tokens of each of B prompts.
        completions: tokens of each completion, EOS included, prompt after prompt: B * G.
        grids: (time, height, width) of each clip, in patches.
        is_encoded: the trunk's output came with the batch.
        has_reference: a frozen model scores the completions, too.
        trains_language: the language model's weights get gradients.
        trains_merger: the merger's weights get gradients.
        trains_trunk: so do the vision trunk's; it then runs for each set of weights and each use.
    """

    prompts: Sequence[int]
    completions: Sequence[int]
    grids: Sequence[Sequence[int]]
    is_encoded: bool
    has_reference: bool
    trains_language: bool
    trains_merger: bool
    trains_trunk: bool


def step_flops(shape: ModelShape, work: StepWork) -> dict[str, float]:
    """Operations of each stage; their sum is the step's.

    A layer's backward is twice its forward: once for the gradient of its input, once for that of
    its weights, the second left out where they are frozen.
    """
    trunk = 0.0 if work.is_encoded else sum(trunk_flops(shape, grid) for grid in work.grids)
    patches = sum(t * h * w for t, h, w in work.grids)
    merger = 2.0 * shape.merger_params * patches / shape.merge
    layers, pairs = _language(shape, work.prompts, work.completions)
    head = 2.0 * shape.hidden * shape.words * sum(work.completions)
    once = trunk if work.trains_trunk else 0.0  # a run of the trunk for each stage of its own
    forward = once + merger + layers + pairs + head
    backward = (layers + head) * (1 + work.trains_language) + 2 * pairs
    # Below the language model, what is frozen gets no gradient at all.
    backward += merger * (work.trains_merger + work.trains_trunk) + 2 * once
    return {
        "vision": trunk - once,
        "sampling": once + merger + sampling_flops(shape, work.prompts, work.completions),
        "reference": forward if work.has_reference else 0.0,
        "policy": forward,
        "backward": backward,
    }


def trunk_flops(shape: ModelShape, grid: Sequence[int]) -> float:
    """One run of the vision trunk over one clip of a grid (time, height, width) in patches."""
    time, height, width = grid
    patches = time * height * width
    products = shape.patch_values * shape.vision_hidden + shape.vision_layers * shape.block_params
    whole = time * (height * width) ** 2
    windows = time * _squares(height, shape.window) * _squares(width, shape.window)
    num_windowed = shape.vision_layers - shape.vision_full_layers
    pairs = shape.vision_full_layers * whole + num_windowed * windows
    return 2.0 * products * patches + 4.0 * shape.vision_hidden * pairs


def sampling_flops(shape: ModelShape, prompts: Sequence[int], completions: Sequence[int]) -> float:
    """One prefill a prompt, then a token at a time; the last token drawn is not fed back."""
    group = len(completions) // len(prompts)
    layer = 2.0 * (shape.attention_params + shape.mlp_params)
    products, pairs = 0.0, 0.0
    for number, prompt in enumerate(prompts):
        filled, filled_pairs = _language(shape, [prompt], [])
        products, pairs = products + filled, pairs + filled_pairs
        for length in completions[number * group : (number + 1) * group]:
            fed = max(length - 1, 0)
            products += layer * shape.layers * fed
            pairs += 4.0 * shape.queries * shape.layers * (fed * prompt + fed * (fed + 1) / 2)
    return products + pairs + 2.0 * shape.hidden * shape.words * sum(completions)


def _language(
    shape: ModelShape, prompts: Sequence[int], completions: Sequence[int]
) -> tuple[float, float]:
    """Products and attention of one forward of prompts, each with its share of completions.

    The last layer owes keys and values of all tokens, and the rest of its work to those places
    alone whose states are read: each prompt's end and its completions but for their last tokens.
    """
    group = len(completions) // len(prompts)
    keys = 2.0 * 2 * shape.hidden * shape.keys
    layer = 2.0 * (shape.attention_params + shape.mlp_params)
    products, pairs = 0.0, 0.0
    for number, prompt in enumerate(prompts):
        mine = completions[number * group : (number + 1) * group]
        fed = [max(length - 1, 0) for length in mine]  # nothing follows a last token
        tokens = prompt + sum(fed)
        after = sum(length * prompt + length * (length + 1) / 2 for length in fed)
        products += (shape.layers - 1) * layer * tokens
        products += keys * tokens + (layer - keys) * (1 + sum(fed))
        pairs += (shape.layers - 1) * (prompt * (prompt + 1) / 2 + after) + prompt + after
    return products, 4.0 * shape.queries * pairs


def _squares(length: int, window: int) -> int:
    """The sum of squares of the windows that a side is cut into, the last one maybe shorter."""
    return length // window * window**2 + (length % window) ** 2


def rollout_flops(
    policy: Policy,
    rollout: RolloutBatch,
    *,
    has_reference: bool,
    is_encoded: bool,
    num_updates: int = 1,
) -> float:
    """Operations of sampling a rollout and of learning from it `num_updates` times (0: not yet)."""
    counted = count_parameters(policy.model)
    work = StepWork(
        prompts=rollout.prompts.attention_mask.sum(1).tolist(),
        completions=rollout.completion_mask.sum(1).tolist(),
        grids=rollout.prompts.video_grid_thw.tolist(),
        is_encoded=is_encoded,
        has_reference=has_reference,
        trains_language=counted.is_head_trained,
        trains_merger=counted.is_merger_trained,
        trains_trunk=counted.is_trunk_trained,
    )
    flops = step_flops(shape_of(policy.model.config), work)
    once = flops["vision"] + flops["sampling"] + (flops["reference"] if num_updates else 0.0)
    return once + num_updates * (flops["policy"] + flops["backward"])
