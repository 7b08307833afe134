"""Formats the memory estimate: a table, the size of the run, and whether it fits."""

from __future__ import annotations

from rich.table import Table

from tvg.estimate.job import Job
from tvg.estimate.lines import Line, host_total, total, worst_phase
from tvg.estimate.remedies import cheapest_that_fits, remedies

GIB = 2**30
USABLE = 0.95  # share of a GPU's memory; the rest is for the CUDA context and fragmentation
MAX_REMEDIES = 8


def make_table(lines: list[Line], job: Job) -> Table:
    """Returns a table with one row per use of memory."""
    table = Table(title=f"Memory of each of {job.sharding.devices} device(s)")
    for column in ("item", "phase"):
        table.add_column(column, no_wrap=True)
    for column in ("GPU", "CPU"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("details")
    for line in lines:
        table.add_row(line.name, line.phase, size(line.gpu), size(line.host), line.detail)
    table.add_section()
    phase = worst_phase(lines)
    host = size(host_total(lines))
    table.add_row("peak", phase, size(total(lines)), host, f"GPU: always + {phase}")
    return table


def run_size(job: Job, num_examples: int | None) -> list[str]:
    """Returns lines on prompts per step, steps per epoch (if known) and checkpoint size."""
    devices = job.sharding.devices
    step = f"A step takes {job.prompts_of_all:,} prompts"
    step += f": {job.prompts:,} on each of {devices} devices" if devices > 1 else ""
    if job.group_size > 1:
        step += f", and {job.prompts_of_all * job.group_size:,} completions"
    epoch = "The steps per epoch are unknown, because the training annotations cannot be read."
    if num_examples is not None:
        epoch = (
            f"An epoch takes {job.steps_per_epoch(num_examples):,} steps for "
            f"{num_examples:,} training examples."
        )
    return [f"{step}.", epoch, _disk(job)]


def _disk(job: Job) -> str:
    one, kept = job.checkpoint_bytes, job.kept_checkpoints
    return (
        f"A checkpoint takes {size(one)} on disk. There are up to {kept} of them while one is "
        f"written: {size(kept * one)}."
    )


def host_lines(job: Job, lines: list[Line]) -> list[str]:
    """Returns a line on the memory of a node, without the processes and the decoded clips."""
    processes = job.sharding.devices_per_node
    training = sum(line.host for line in lines if line.phase != "loading")
    loading = sum(line.host for line in lines if line.phase == "loading")
    text = f"CPU memory of a node with {processes} process(es): {size(processes * loading)} while "
    after = size(processes * training) if training else "none"
    return [f"{text}loading, then {after} for weights and states."]


def verdict(job: Job, lines: list[Line], *, memory_gib: float | None) -> list[str]:
    """Returns lines on whether the run fits and, if it does not, which changes would help."""
    needed = total(lines)
    if memory_gib is None:
        return ["No GPU was found to compare with; train.device_memory_gib=80 sets its memory."]
    usable = USABLE * memory_gib * GIB
    if needed <= usable:
        return [f"It fits: {size(needed)} of {memory_gib:.4g} GiB."]
    texts = [
        f"It does not fit: {size(needed)} of {memory_gib:.4g} GiB, of which {USABLE:.0%} are "
        "usable. Changes that help, each on its own:"
    ]
    texts += [
        f"  {remedy.words}: {size(remedy.saved)} less"
        f"{', and it fits' if needed - remedy.saved <= usable else ''} (costs: {remedy.cost})"
        for remedy in remedies(job)[:MAX_REMEDIES]
    ]
    return [*texts, *_cheapest(job, usable)]


def _cheapest(job: Job, usable: float) -> list[str]:
    found = cheapest_that_fits(job, usable)
    if found is None:
        return [
            "No combination of such changes fits: use more GPUs, a smaller model, LoRA, or "
            "shorter clips."
        ]
    costs = f" (costs: {'; '.join(found.costs)})" if found.costs else ""
    return [
        f"The cheapest combination that fits needs {size(found.gpu)} of each GPU and "
        f"{size(found.host)} of CPU memory per node{costs}:",
        f"  {' '.join(found.words)}",
    ]


def size(number_of_bytes: float) -> str:
    """Formats a number of bytes for people; `-` for none."""
    if number_of_bytes <= 0:
        return "-"
    if number_of_bytes < 0.1 * GIB:
        return f"{number_of_bytes / 2**20:.1f} MiB"
    return f"{number_of_bytes / GIB:.2f} GiB"
