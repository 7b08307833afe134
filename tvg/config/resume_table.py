"""The table of settings that a training run may change when it is resumed.

docs/resuming.md shows the same table. `python -m tvg.config.resume_table` prints it.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

PART_RATES = "objective.component_lr."


@dataclass(frozen=True, kw_only=True)
class Row:
    """A group of settings, and what a change of them does to a resumed run.

    Attributes:
        group: name of the group, for the documentation.
        keys: dotted config keys; `*` matches any text.
        is_applied: a changed value takes effect; False: the resumed run is refused.
        why: what the change does, or why it is refused; one or two sentences.
    """

    group: str
    keys: tuple[str, ...]
    is_applied: bool
    why: str

    def has(self, key: str) -> bool:
        """Returns whether a dotted key belongs to this group."""
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in self.keys)


# The first row that has a key decides.
RESUME_TABLE: tuple[Row, ...] = (
    Row(
        group="length of the run",
        keys=("trainer.max_steps", "trainer.max_epochs", "trainer.max_time"),
        is_applied=True,
        why=(
            "The learning-rate schedule spans the new length. trainer.max_time counts the time of "
            "all parts of the run. Fewer steps than the checkpoint has done are refused."
        ),
    ),
    Row(
        group="learning rate and weight decay",
        keys=(
            "objective.optimizer.lr",
            "objective.optimizer.weight_decay",
            f"{PART_RATES}*",
        ),
        is_applied=True,
        why=(
            "The new values replace those that the checkpoint restores. The optimizer stores its "
            "states per group of equal rates, so component_lr must keep the same parts together."
        ),
    ),
    Row(
        group="learning-rate schedule",
        keys=("objective.schedule.name", "objective.schedule.warmup_steps"),
        is_applied=True,
        why="The next step has the rate of the new schedule at its step.",
    ),
    Row(
        group="limits of gradients",
        keys=("objective.max_grad_norm", "objective.max_skipped_steps"),
        is_applied=True,
        why="They are read at every step and are not part of a checkpoint.",
    ),
    Row(
        group="reward weights",
        keys=("reward.*.weight",),
        is_applied=True,
        why=(
            "The next rollout is scored with them. callbacks.early_stop then forgets its best "
            "mean, which had another scale."
        ),
    ),
    Row(
        group="sample filtering",
        keys=("callbacks.sample_filtering.*",),
        is_applied=False,
        why="The training list of the current epoch was chosen with these settings.",
    ),
    Row(
        group="loggers and callbacks",
        keys=("logger", "logger.*", "callbacks", "callbacks.*"),
        is_applied=True,
        why="They do not change what is trained.",
    ),
    Row(
        group="validation and logging",
        keys=(
            "trainer.val_check_interval",
            "trainer.check_val_every_n_epoch",
            "trainer.limit_val_batches",
            "trainer.num_sanity_val_steps",
            "trainer.log_every_n_steps",
            "trainer.profiler",
            "trainer.enable_*",
            "data.eval_batch_size",
            "data.eval_batch_tokens",
        ),
        is_applied=True,
        why="They do not change what is trained. The next validation uses the new interval.",
    ),
    Row(
        group="places of files",
        keys=(
            "model.path",
            "model.create.folder",
            "prompt.template_file",
            "prompt.folder",
            "trainer.default_root_dir",
            "data.*video_dir",
            "data.*_file",
            "data.*cache.folder",
            "data.*cache.checkpoint",
            "data.*clip.folder",
            "data.*world.root",
        ),
        is_applied=True,
        why="Files may move. Annotations and weights must have equal contents (digests).",
    ),
    Row(
        group="test split",
        keys=("data.limit_test",),
        is_applied=True,
        why="Training does not read it.",
    ),
    Row(
        group="data loading",
        keys=(
            "data.num_workers",
            "data.memory_cache",
            "data.*timeout_s",
            "data.decoder.*",
            "data.template_limits.*",
        ),
        is_applied=True,
        why="Every decoder and every number of workers gives the same frames.",
    ),
    Row(
        group="passes and memory",
        keys=(
            "objective.micro_batch_size",
            "objective.micro_batch_completions",
            "rollout.prompts_per_call",
            "objective.reference_offload",
            "objective.reference_dtype",
            "model.gradient_checkpointing",
            "policy.head_products",
            "train.*",
        ),
        is_applied=True,
        why="The gradient is the same up to rounding.",
    ),
    Row(
        group="preflight",
        keys=("objective.preflight", "objective.preflight.*"),
        is_applied=True,
        why="It only compares; a resumed run does it again.",
    ),
    Row(
        group="machine",
        keys=("trainer.accelerator", "strategy.timeout", "strategy.timeout.*"),
        is_applied=True,
        why="Results are the same up to the rounding of the device.",
    ),
    Row(
        group="model",
        keys=("model", "model.*", "policy.*"),
        is_applied=False,
        why="The checkpoint contains the trained weights of this model.",
    ),
    Row(
        group="prompt",
        keys=("prompt", "prompt.*"),
        is_applied=False,
        why="The policy was trained to answer this prompt, and the export records only one.",
    ),
    Row(
        group="data",
        keys=("data", "data.*", "annotation_split"),
        is_applied=False,
        why="The position in the data counts batches of this list in this order.",
    ),
    Row(
        group="rewards",
        keys=("reward", "reward.*"),
        is_applied=False,
        why="One reward before and another after is not one experiment; only weights may change.",
    ),
    Row(
        group="objective",
        keys=("objective", "objective.*"),
        is_applied=False,
        why="The optimizer's states and the logged losses belong to this objective.",
    ),
    Row(
        group="sampler",
        keys=("rollout", "rollout.*"),
        is_applied=False,
        why="The sampler is part of the objective: its log-probabilities are in the ratio.",
    ),
    Row(
        group="seed",
        keys=("seed",),
        is_applied=False,
        why="Every random draw and the order of the data depend on it.",
    ),
    Row(
        group="ranks",
        keys=("trainer.devices", "trainer.num_nodes"),
        is_applied=False,
        why=(
            "data.batch_size counts prompts per rank, so another number of ranks is another batch, "
            "and the position in the data would be wrong."
        ),
    ),
    Row(
        group="strategy and precision",
        keys=("strategy", "strategy.*", "trainer.precision"),
        is_applied=False,
        why="The engine that wrote the checkpoint decides its format and the kept precision.",
    ),
    Row(
        group="other trainer settings",
        keys=("trainer", "trainer.*"),
        is_applied=False,
        why="They may change the steps that are made.",
    ),
)
_UNKNOWN = Row(
    group="all other keys",
    keys=("*",),
    is_applied=False,
    why="It is not known that a change is harmless.",
)


def row_of(key: str) -> Row:
    """Returns the row that decides about a dotted key; the row of all other keys if none has it."""
    return next((row for row in RESUME_TABLE if row.has(key)), _UNKNOWN)


def may_change(key: str) -> bool:
    """Returns whether a resumed run may have another value at a dotted key."""
    return row_of(key).is_applied


def table_text() -> str:
    """Returns the table as Markdown, for docs/resuming.md."""
    lines = ["| settings | keys | when a run is resumed | why |", "|---|---|---|---|"]
    for row in (*RESUME_TABLE, _UNKNOWN):
        keys = ", ".join(f"`{key}`" for key in row.keys)
        effect = "applied" if row.is_applied else "refused"
        lines.append(f"| {row.group} | {keys} | {effect} | {row.why} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table_text())
