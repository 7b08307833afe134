"""Counts the floating-point operations that a GRPO step requires in any implementation.

The count is the minimum for a step. Each stage (vision trunk, prefill, forward passes of policy and
reference) processes every prompt once, without recomputation or padding. Repeating prompts or
recomputing activations makes a run slower but does not increase the count. The count per second,
divided by a GPU's peak, is the model FLOPs utilisation of PaLM (arXiv 2204.02311, appendix B).

A product of matrices [m, k] and [k, n] counts as 2 m k n operations. Norms, rotary embeddings,
softmax and the optimizer are not counted. They are about a thousandth of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvg.model.policy import Policy
from tvg.model.shape import ModelShape, count_parameters, shape_of
from tvg.types import RolloutBatch


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """The work of one rank in one step.

    Attributes:
        prompts: number of tokens of each of B prompts.
        completions: number of tokens of each of the B * G completions, including EOS. The G
            completions of a prompt are adjacent.
        grids: (time, height, width) of each clip, in patches.
        is_encoded: the batch contains the trunk's output instead of pixels.
        has_reference: a frozen reference also scores the completions.
        trains_language: the language model's weights get gradients.
        trains_merger: the merger's weights get gradients.
        trains_trunk: the vision trunk's weights get gradients. Sampling, policy and reference then
            each run the trunk.
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
    """Returns the operations of each stage; the step's total is their sum.

    The backward pass of a layer costs twice its forward pass: once for the gradient of the input,
    once for the gradient of the weights. Frozen weights need only the gradient of the input.
    """
    trunk = 0.0 if work.is_encoded else sum(trunk_flops(shape, grid) for grid in work.grids)
    patches = sum(t * h * w for t, h, w in work.grids)
    merger = 2.0 * shape.merger_params * patches / shape.merge
    layers, pairs = _language(shape, work.prompts, work.completions)
    head = 2.0 * shape.hidden * shape.words * sum(work.completions)
    # A trained trunk runs in sampling, policy and reference.
    once = trunk if work.trains_trunk else 0.0
    forward = once + merger + layers + pairs + head
    backward = (layers + head) * (1 + work.trains_language) + 2 * pairs
    # The gradient of the merger's input is needed only if the trunk is trained.
    backward += merger * (work.trains_merger + work.trains_trunk) + 2 * once
    return {
        "vision": trunk - once,
        "sampling": once + merger + sampling_flops(shape, work.prompts, work.completions),
        "reference": forward if work.has_reference else 0.0,
        "policy": forward,
        "backward": backward,
    }


def trunk_flops(shape: ModelShape, grid: Sequence[int]) -> float:
    """Returns the operations of the vision trunk for a clip of (time, height, width) patches."""
    time, height, width = grid
    patches = time * height * width
    products = shape.patch_values * shape.vision_hidden + shape.vision_layers * shape.block_params
    whole = time * (height * width) ** 2
    windows = time * _squares(height, shape.window) * _squares(width, shape.window)
    num_windowed = shape.vision_layers - shape.vision_full_layers
    pairs = shape.vision_full_layers * whole + num_windowed * windows
    return 2.0 * products * patches + 4.0 * shape.vision_hidden * pairs


def sampling_flops(shape: ModelShape, prompts: Sequence[int], completions: Sequence[int]) -> float:
    """Returns the operations of one prefill per prompt, and then of one decode step per token.

    The last sampled token is not fed back.
    """
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
    """Returns the operations of a forward pass over prompts and completions.

    The result is (matrix products, attention). The last layer computes keys and values for all
    tokens. It computes everything else only for tokens whose states are read: each prompt's last
    token, and every completion token but the last.
    """
    group = len(completions) // len(prompts)
    keys = 2.0 * 2 * shape.hidden * shape.keys
    layer = 2.0 * (shape.attention_params + shape.mlp_params)
    products, pairs = 0.0, 0.0
    for number, prompt in enumerate(prompts):
        mine = completions[number * group : (number + 1) * group]
        fed = [max(length - 1, 0) for length in mine]  # nothing is predicted from a last token
        tokens = prompt + sum(fed)
        after = sum(length * prompt + length * (length + 1) / 2 for length in fed)
        products += (shape.layers - 1) * layer * tokens
        products += keys * tokens + (layer - keys) * (1 + sum(fed))
        pairs += (shape.layers - 1) * (prompt * (prompt + 1) / 2 + after) + prompt + after
    return products, 4.0 * shape.queries * pairs


def _squares(length: int, window: int) -> int:
    """Returns the sum of squared window lengths along one side; the last may be shorter."""
    return length // window * window**2 + (length % window) ** 2


def rollout_flops(
    policy: Policy,
    rollout: RolloutBatch,
    *,
    has_reference: bool,
    is_encoded: bool,
    num_updates: int = 1,
) -> float:
    """Returns the operations of sampling a rollout and of `num_updates` updates on it."""
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
