"""Tells from the environment how this process was started, and which of several ranks it is.

Three launchers are supported. torchrun sets RANK, LOCAL_RANK and WORLD_SIZE. srun sets
SLURM_PROCID, SLURM_LOCALID and SLURM_STEP_NUM_TASKS. Lightning starts the other ranks of a node
with LOCAL_RANK; with several nodes, the user sets NODE_RANK on each of them.
"""

from __future__ import annotations

import os
import re

# Variables with the rank; the first one that is set is used. SLURM sets SLURM_PROCID in every shell
# that it opens. In such a shell, Lightning starts the other ranks with LOCAL_RANK.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_COUNTS = (("WORLD_SIZE", "RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"))
_NO_ID = "none"  # torchrun's run id unless --rdzv-id or --standalone is given


def is_first_rank() -> bool:
    """Returns whether this process owns the run folder of its job."""
    name = next((name for name in _RANKS if name in os.environ), "LOCAL_RANK")
    node = os.environ.get("NODE_RANK", "0") if name == "LOCAL_RANK" else "0"
    return os.environ.get(name, "0") == "0" and node == "0"


def is_first_of_node() -> bool:
    """Returns whether this process is the first one on its machine."""
    name = "LOCAL_RANK" if "LOCAL_RANK" in os.environ else "SLURM_LOCALID"
    if name == "SLURM_LOCALID" and "SLURM_PROCID" not in os.environ:
        return True
    return os.environ.get(name, "0") == "0"


def started_processes() -> str:
    """Returns the variable that shows that a launcher started several processes, with its value.

    The text is such as `WORLD_SIZE=16`; it is empty if this process was started alone.
    """
    for name, rank in _COUNTS:
        count = os.environ.get(name, "")
        if rank in os.environ and count.isdigit() and int(count) > 1:
            return f"{name}={count}"
    return ""


def launched_layout() -> tuple[int | None, int | None]:
    """Returns processes per node and nodes of torchrun or srun; None without a launcher."""
    if "RANK" in os.environ and "LOCAL_WORLD_SIZE" in os.environ:
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        return per_node, max(int(os.environ.get("WORLD_SIZE", per_node)) // per_node, 1)
    if started_processes() and "SLURM_NNODES" in os.environ:
        nodes = int(os.environ["SLURM_NNODES"])
        return max(int(os.environ["SLURM_STEP_NUM_TASKS"]) // nodes, 1), nodes
    return None, None


def name_of_launch() -> str | None:
    """Returns a name that all processes of one launch share; None if the launcher provides none.

    A job that Slurm requeues and a group of workers that torchrun restarts keep their names.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", _NO_ID)
    if run_id != _NO_ID:
        return f"torchrun_{_word(run_id)}"
    if "SLURM_JOB_ID" in os.environ:
        step = os.environ.get("SLURM_STEP_ID", "0")
        return f"slurm_{_word(os.environ['SLURM_JOB_ID'])}_{_word(step)}"
    return None


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)[:40]
