"""Computes bytes per rank and per step for each strategy, and writes the tables of docs/scaling.md.

Counts of parameters, activations and FLOPs come from the project's code, for models on the meta
device. The formulas of states and communication are stated in docs/scaling.md, and `STATES` and
`traffic` implement them. Nothing here is measured.

    python experiments/scaling/scaling.py            # rewrites the tables in docs/scaling.md
    python experiments/scaling/scaling.py --print    # prints them only
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from tvg.estimate.activations import Precision, Row, activations
from tvg.model.shape import ModelShape, Parameters, count_parameters, shape_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
GIB = 2**30
MODELS = ("7b", "72b")
RANKS = (8, 64, 512)
PER_NODE = 8

# One step on a rank: Charades-STA clips at the sizes of the Time-R1 recipe.
PROMPTS, GROUP, PROMPT_TOKENS, COMPLETION_TOKENS = 2, 8, 6440, 200
PATCHES = 4 * 6400  # before 2 x 2 merging

# H100 SXM (NVIDIA's data sheet): dense bf16, memory, NVLink in one direction, PCIe 5. Between
# nodes: 400 Gbit/s per GPU (DGX H100). Each times the share that a good implementation reaches.
FLOPS = 989e12 * 0.4
HBM = 3.35e12 * 0.8
NVLINK = 450e9 * 0.8
NETWORK = 50e9 * 0.8
PCIE = 64e9 * 0.8


@dataclass(frozen=True)
class Model:
    """The numbers of a model that the formulas need."""

    name: str
    shape: ModelShape
    params: Parameters

    @property
    def trained(self) -> int:
        return self.params.trained

    @property
    def total(self) -> int:
        return self.params.total


@dataclass(frozen=True)
class States:
    """Bytes of weights, gradients, optimizer states and reference of one rank."""

    gpu: float
    host: float = 0.0


def states(model: Model, strategy: str, ranks: int) -> States:
    """Returns the permanent bytes of a rank, with gradients; the reference is bf16."""
    t, frozen = model.trained, model.params.frozen
    reference, n = 2 * t, ranks
    if strategy == "ddp":  # float32 weights, gradients, moments; bf16 copies under autocast
        return States(gpu=(4 + 4 + 8 + 2) * t + 4 * frozen + reference)
    if strategy == "zero1":
        return States(gpu=(2 + 2) * t + 12 * t / n + 2 * frozen + reference)
    if strategy == "zero2":
        return States(gpu=2 * t + (2 + 12) * t / n + 2 * frozen + reference)
    if strategy == "zero2_offload":
        return States(gpu=2 * t + 2 * frozen + reference, host=(2 + 12) * t / n)
    if strategy in ("zero3", "fsdp2"):  # fsdp2: float32 shards, moments and gradients
        frozen_bytes = (4 if strategy == "fsdp2" else 2) * frozen
        return States(gpu=(16 * t + frozen_bytes + reference) / n)
    if strategy == "zero3_offload":
        return States(gpu=0.0, host=(16 * t + 2 * frozen + reference) / n)
    raise ValueError(strategy)


def gathered(model: Model, strategy: str) -> float:
    """Returns the bytes of weights that a sharded rank holds in bf16 while it samples: all."""
    return 2 * model.total if strategy in ("zero3", "zero3_offload", "fsdp2") else 0.0


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends per optimizer step."""

    network: float
    pcie: float = 0.0


def traffic(model: Model, strategy: str, ranks: int, passes: int) -> Traffic:
    """Returns the bytes of a step by ring algorithms, for N ranks.

    An all-reduce sends 2 (N-1)/N of a size; a reduce-scatter or an all-gather sends (N-1)/N.
    """
    t, ring, n = model.trained, (ranks - 1) / ranks, ranks
    all_weights = 2 * model.total
    if strategy == "ddp":
        return Traffic(network=2 * ring * 4 * t)
    if strategy == "zero1":  # gradients once, new weights once
        return Traffic(network=ring * (2 * t + 2 * t))
    if strategy.startswith("zero2"):  # gradients in every pass
        pcie = (passes * 2 * t + 2 * t) / n if strategy.endswith("offload") else 0.0
        return Traffic(network=ring * (passes * 2 * t + 2 * t), pcie=pcie)
    # Weights: once to sample, once per pass for the reference, twice per pass for the policy.
    weights = all_weights + passes * (2 * t + 2 * all_weights)
    reduced = 4 * t if strategy == "fsdp2" else passes * 2 * t
    pcie = (weights + passes * 2 * t + 2 * t) / n if strategy.endswith("offload") else 0.0
    return Traffic(network=ring * (weights + reduced), pcie=pcie)


def compute_s(model: Model) -> tuple[float, float]:
    """Returns the seconds of learning and of sampling of one rank's step; lower bounds."""
    learned = PROMPTS * (PROMPT_TOKENS + GROUP * COMPLETION_TOKENS)
    # Forward, recomputed forward, backward (2 x) of the policy; forward of the reference.
    learning = (4 + 1) * 2 * model.trained * learned / FLOPS
    prefill = 2 * model.trained * PROMPTS * PROMPT_TOKENS / FLOPS
    decode = COMPLETION_TOKENS * 2 * model.trained / HBM  # every token reads all weights
    return learning, prefill + decode


def link(ranks: int) -> float:
    return NVLINK if ranks <= PER_NODE else NETWORK


STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")


def make_model(name: str) -> Model:
    from experiments.benchmarks.common.shapes import make_policy

    policy = make_policy(name, forward_by="shared_prefix", device="meta", dtype=torch.bfloat16)
    return Model(name, shape_of(policy.model.config), count_parameters(policy.model))


def learning_bytes(model: Model) -> float:
    """Returns the bytes of one pass: a prompt with its group, with gradient checkpointing."""
    row = Row(
        prompts=1,
        completions=GROUP,
        prompt_tokens=PROMPT_TOKENS,
        completion_tokens=COMPLETION_TOKENS,
        patches=PATCHES,
        forward="shared_prefix",
    )
    precision = Precision(weight=2, compute=2, stream=2)
    return activations(model.shape, model.params, row, precision, gradient_checkpointing=True).total


def memory_table(model: Model) -> list[str]:
    work = learning_bytes(model)
    lines = [
        f"### {model.name.upper()}: memory per rank, GiB",
        "",
        f"{model.trained / 1e9:.2f} billion trained parameters, {model.params.frozen / 1e9:.2f} "
        f"billion frozen (vision). A pass over one prompt needs {work / GIB:.1f} GiB more.",
        "",
        "| strategy | " + " | ".join(f"{n} GPUs" for n in RANKS) + " | while sampling | host |",
        "|---|" + "---|" * (len(RANKS) + 2),
    ]
    for strategy in STRATEGIES:
        found = [states(model, strategy, n) for n in RANKS]
        more = gathered(model, strategy)
        host = " / ".join(f"{each.host / GIB:.0f}" for each in found) if found[0].host else "0"
        cells = " | ".join(f"{each.gpu / GIB:.1f}" for each in found)
        lines.append(f"| {strategy} | {cells} | {f'+{more / GIB:.0f}' if more else '0'} | {host} |")
    return [*lines, ""]


def traffic_table(model: Model) -> list[str]:
    learning, sampling = compute_s(model)
    lines = [
        f"### {model.name.upper()}: bytes that a rank sends per step, GB, and their time",
        "",
        f"{PROMPTS} prompts per rank in {PROMPTS} passes. Lower bounds of the other work: learning "
        f"{learning:.1f} s, sampling {sampling:.1f} s.",
        "",
        "| strategy | " + " | ".join(f"{n} GPUs" for n in RANKS) + " | over PCIe, 8 / 64 / 512 |",
        "|---|" + "---|" * (len(RANKS) + 1),
    ]
    for strategy in STRATEGIES:
        cells, pcie = [], []
        for n in RANKS:
            sent = traffic(model, strategy, n, PROMPTS)
            cells.append(f"{sent.network / 1e9:.0f} ({sent.network / link(n):.1f} s)")
            pcie.append(f"{sent.pcie / 1e9:.1f}")
        told = " / ".join(pcie) if any(float(p) for p in pcie) else "0"
        lines.append(f"| {strategy} | " + " | ".join(cells) + f" | {told} |")
    return [*lines, ""]


def tables() -> str:
    lines: list[str] = []
    for name in MODELS:
        model = make_model(name)
        lines += [*memory_table(model), *traffic_table(model)]
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--print", action="store_true", help="do not change docs/scaling.md")
    arguments = parser.parse_args()
    text = tables()
    if arguments.print:
        print(text)
        return
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
