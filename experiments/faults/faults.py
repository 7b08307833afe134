"""Kills or stops trainings at many moments and compares the resumed runs with an undisturbed one.

Each moment has a separate folder with a new MLflow store. The command runs in a process forked from
this one, which has already done the imports. The process gets a signal after a share of the time of
the undisturbed run, or kills itself at a random call of a function of `PLACES`. Then the same
command runs again to its end. See README.md.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib
import json
import os
import random
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

STEPS = 6
REWARD = """
def length(*, texts, **rest):
    return [len(text) % 5 for text in texts]
"""
COMMON = (
    "data=synthetic",
    "data.world.num_clips={train:6,val:3,test:3}",
    "data.world.num_workers=0",
    "data.batch_size=2",
    "data.eval_batch_size=1",
    "prompt=short",
    "reward=[format,iou]",
    "+reward.length.weight=1.0",
    "+reward.length.reward._target_=faults_reward.length",
    "+reward.length.reward._partial_=true",
    "objective.group_size=3",
    "objective.optimizer.lr=1e-3",
    "objective.loss.kl_coef=0.1",
    "rollout.max_new_tokens=6",
    "trainer=cpu",
    "callbacks.checkpoint.every_n_train_steps=1",
    "callbacks.progress.style=lines",
    "logger=[mlflow,csv]",
    "resume=auto",
)
VARIANTS = {
    "grpo": (
        f"trainer.max_steps={STEPS}",
        "trainer.val_check_interval=2",
        "callbacks.checkpoint.keep_best=val/miou",
    ),
    "filtering": (
        "callbacks.checkpoint.asynchronous=true",
        "trainer.max_steps=-1",
        "trainer.max_epochs=3",
        "trainer.limit_val_batches=0",
        "+callbacks=[sample_filtering]",
        "data/selection@callbacks.sample_filtering.select=top",
        "callbacks.sample_filtering.select.k=4",
    ),
}


# part of the work -> the functions before whose calls a run is killed
PLACES = {
    "rollout": ("tvg.rollout.shared_prefix:draw",),
    "scoring": ("tvg.model.policy:Policy.forward",),
    "backward": ("tvg.training.policy_module:PolicyModule.manual_backward",),
    "optimizer": ("tvg.training.policy_module:PolicyModule.step_optimizer",),
    "checkpoint write": ("tvg.training.checkpoint_file:ChecksumWriter.write",),
    "rename": ("tvg.core.writing:os.fsync", "tvg.core.writing:os.replace"),
    "checkpoint links": (
        "tvg.training.checkpoint_folder:_link",
        "tvg.training.checkpoint_folder:_remove",
    ),
    "logging": ("tvg.tracking.mlflow_client:_send",),
    "validation": ("tvg.training.policy_module:predict_batch",),
    "filtering": (
        "tvg.training.evaluation:predict_batch",
        "tvg.callbacks.sample_filtering:SampleFiltering._report",
    ),
    "export": ("tvg.model.exporting:checksum_text", "tvg.jobs.train:export_checkpoint"),
}


@dataclass
class Moment:
    """The outcome of one disturbed run."""

    variant: str
    name: str
    after: str  # seconds after the start, or the part of the work and the number of the call
    exit_code: int
    step: int | None  # of the checkpoint after the signal
    num_logged: int  # steps with metrics after the signal
    status: str | None  # of the MLflow run after the signal
    problems: list[str] = field(default_factory=list)


def watch(on_call: Callable[[str, int], None]) -> None:
    """Calls `on_call` with the part of the work and the number of the call, before each call."""
    numbers = dict.fromkeys(PLACES, 0)

    def watched(function: Callable[..., Any], place: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            numbers[place] += 1
            on_call(place, numbers[place])
            return function(*arguments, **named)

        return call

    for place, targets in PLACES.items():
        for target in targets:
            module, _, names = target.partition(":")
            *outer, name = names.split(".")
            owner = functools.reduce(getattr, outer, importlib.import_module(module))
            setattr(owner, name, watched(getattr(owner, name), place))


def counting(file: Path) -> Callable[[str, int], None]:
    """Returns an `on_call` that appends the part of the work to a file."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return lambda place, number: os.write(descriptor, f"{place}\n".encode()) and None


def killing(at: str, call: int) -> Callable[[str, int], None]:
    """Returns an `on_call` that kills the process at one call."""

    def on_call(place: str, number: int) -> None:
        if (place, number) == (at, call):
            os.kill(os.getpid(), signal.SIGKILL)

    return on_call


def start(folder: Path, words: list[str], on_call: Callable[[str, int], None] | None = None) -> int:
    """Forks a process that runs `tvg-train` in `folder`; returns its id."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    log = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["tvg-train", *words]
    from tvg.cli.train import main

    if on_call is not None:
        watch(on_call)
    main()
    sys.exit(0)


def wait(child: int, *, timeout_s: float | None = None) -> int | None:
    """Returns the exit code, negative for a signal; None if the process runs after the timeout."""
    ends = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        done, status = os.waitpid(child, 0 if ends is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if ends is not None and time.monotonic() > ends:
            return None
        time.sleep(0.005)


def checkpoint(folder: Path) -> dict[str, Any] | None:
    path = folder / "run/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True) if path.exists() else None


def metrics_csv(folder: Path) -> dict[tuple[str, str], set[str]]:
    """Returns all logged values of each (step, metric); two different values are a problem."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in folder.glob("run/csv/*/metrics.csv"):
        with path.open() as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name and value and name not in ("step", "epoch") and "perf/" not in name:
                        found.setdefault((row["step"], name), set()).add(value)
    return found


def metrics_mlflow(folder: Path) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    run_id = json.loads((folder / "run/mlflow_run.json").read_text())["run_id"]
    with sqlite3.connect(folder / "mlflow.db") as store:
        query = "select step, key, value from metrics where run_uuid = ?"
        for step, key, value in store.execute(query, (run_id,)):
            if not key.startswith("perf/") and key != "epoch":
                found.setdefault((str(step), key), set()).add(repr(value))
    return found


def mlflow_status(folder: Path) -> str | None:
    record = folder / "run/mlflow_run.json"
    if not record.exists():
        return None
    with sqlite3.connect(folder / "mlflow.db") as store:
        query = "select status from runs where run_uuid = ?"
        return store.execute(query, (json.loads(record.read_text())["run_id"],)).fetchone()[0]


def files(folder: Path) -> set[str]:
    """Returns relative paths, without run ids, version numbers, logs and journals."""
    names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    kept = {re.sub(r"\b[0-9a-f]{32}\b", "RUN", re.sub(r"version_\d+", "version", n)) for n in names}
    return {name for name in kept if not name.endswith((".db-journal", "train.log"))}


def differences(whole: Any, other: Any, place: str = "") -> list[str]:
    """Returns the places at which two nested states are not bit for bit equal."""
    if isinstance(whole, torch.Tensor):
        return [] if torch.equal(whole, other) else [place]
    if isinstance(whole, dict):
        if whole.keys() != other.keys():
            return [f"{place}: keys"]
        return [d for key in whole for d in differences(whole[key], other[key], f"{place}.{key}")]
    if isinstance(whole, list | tuple):
        if len(whole) != len(other):
            return [f"{place}: length"]
        pairs = enumerate(zip(whole, other, strict=True))
        return [d for n, pair in pairs for d in differences(*pair, f"{place}.{n}")]
    return [] if whole == other else [place]


def compare(whole: Path, other: Path) -> list[str]:
    """Returns the differences between the undisturbed run and a resumed run."""
    problems = []
    states = checkpoint(whole), checkpoint(other)
    if states[0] is None or states[1] is None:
        return ["no checkpoint"]
    for name in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        problems += [f"{name}{d}" for d in differences(states[0][name], states[1][name])[:3]]
    for kind, read in (("csv", metrics_csv), ("mlflow", metrics_mlflow)):
        one, two = read(whole), read(other)
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key):
                problems.append(f"{kind} {key}: {one.get(key)} became {two.get(key)}")
    extra, missing = files(other) - files(whole), files(whole) - files(other)
    problems += [f"left over: {n}" for n in sorted(extra)]
    problems += [f"missing: {n}" for n in sorted(missing)]
    return problems


def disturb(
    variant: str, whole: Path, folder: Path, words: list[str], number: int, after_s: float
) -> Moment:
    """Sends a signal, checks the state after it, resumes to the end and compares."""
    child = start(folder, words)
    code = wait(child, timeout_s=after_s)
    if code is None:
        os.kill(child, number)
        code = wait(child)
    assert code is not None
    moment = after_signal(variant, folder, number, f"{after_s:.1f}", code)
    is_stopped = "stopped by" in (folder / "output.txt").read_text()
    expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 128 + signal.SIGINT}
    # A scheduler's signal gives 0 if a step was saved.
    expected_code = expected.get(number, 128 + number if moment.step is None else 0)
    # If the run has finished and Python is exiting, the signal itself ends the process. Shells
    # report this as 130 or 143, too.
    is_over = code == 0 or (code == -number and moment.status == "FINISHED")
    if code != expected_code and not (is_over and not is_stopped):
        moment.problems.append(f"exit code {code}, expected {expected_code}")
    if code == 128 + number and not is_stopped:
        moment.problems.append("no message about the signal")
    if is_stopped:
        if (moment.step or 0) != moment.num_logged:
            moment.problems.append(f"step {moment.step} saved, {moment.num_logged} logged")
        if moment.status not in (None, "KILLED"):
            moment.problems.append(f"MLflow status {moment.status}")
    return finished(moment, whole, folder, words)


def disturb_at(
    variant: str, whole: Path, folder: Path, words: list[str], place: str, call: int
) -> Moment:
    """Kills a run at a call of a function, resumes it to the end and compares."""
    code = wait(start(folder, words, killing(place, call)))
    assert code is not None
    moment = after_signal(variant, folder, signal.SIGKILL, f"{place}, call {call}", code)
    if code != -signal.SIGKILL:
        moment.problems.append(f"exit code {code}: the call was not reached")
    return finished(moment, whole, folder, words)


def after_signal(variant: str, folder: Path, number: int, after: str, code: int) -> Moment:
    state = checkpoint(folder)
    return Moment(
        variant=variant,
        name=signal.Signals(number).name,
        after=after,
        exit_code=code,
        step=None if state is None else state["global_step"],
        num_logged=sum(name == "train/loss" for _, name in metrics_csv(folder)),
        status=None if number == signal.SIGKILL else mlflow_status(folder),
    )


def finished(moment: Moment, whole: Path, folder: Path, words: list[str]) -> Moment:
    """Resumes a run to its end, and adds what differs from the undisturbed run."""
    again = wait(start(folder, words))
    if again != 0:
        moment.problems.append(f"the resumed run had exit code {again}")
    else:
        if mlflow_status(folder) != "FINISHED":
            moment.problems.append("the resumed run is not FINISHED")
        moment.problems += compare(whole, folder)
    return moment


def random_calls(counts: Path, num: int, seed: int) -> list[tuple[str, int]]:
    """Draws calls of the undisturbed run; every part of the work occurs about equally often."""
    numbers = {place: counts.read_text().splitlines().count(place) for place in PLACES}
    places = [place for place, number in numbers.items() if number]
    draws = random.Random(seed)
    draws.shuffle(places)
    chosen = [places[index % len(places)] for index in range(num)]
    return [(place, draws.randint(1, numbers[place])) for place in chosen]


def run(
    work: Path, *, num_kills: int, num_signals: int, num_random: int, seed: int, variants: list[str]
) -> list[Moment]:
    """Runs all moments: spread evenly over the undisturbed run, and at random calls."""
    from tvg.synthetic.templates import all_queries
    from tvg.synthetic.tiny import write_tiny_checkpoint

    (work / "faults_reward.py").write_text(REWARD)
    sys.path.insert(0, str(work))
    if not (work / "tiny").exists():
        child = os.fork()
        if not child:  # torch starts threads here, which later forks must not inherit
            write_tiny_checkpoint(
                work / "tiny", family="qwen2_5_vl", corpus=all_queries(), seed=0, num_layers=2
            )
            os._exit(0)
        assert wait(child) == 0
    common = [*COMMON, f"model.path={work / 'tiny'}", f"data.world.root={work / 'world'}"]
    moments = []
    for variant in variants:
        words = [*common, *VARIANTS[variant], "hydra.run.dir=run", "name=run"]
        assert wait(start(work / f"{variant}_first", words)) == 0  # generates the synthetic data
        whole, began = work / f"{variant}_whole", time.monotonic()
        counts = work / f"{variant}_calls.txt"
        assert wait(start(whole, words, counting(counts))) == 0, (whole / "output.txt").read_text()
        whole_s = time.monotonic() - began
        print(f"{variant}: the undisturbed run takes {whole_s:.1f} s", flush=True)
        for index, (place, call) in enumerate(random_calls(counts, num_random, seed)):
            folder = work / f"{variant}_random_{index:02d}"
            moments.append(disturb_at(variant, whole, folder, words, place, call))
            print(line(moments[-1]), flush=True)
        plans = [(signal.SIGKILL, num_kills)]
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        plans += [(number, num_signals) for number in numbers]
        for number, count in plans:
            for index in range(count):
                name = f"{variant}_{signal.Signals(number).name}_{index:02d}"
                share = (index + 0.5) / count
                moment = disturb(variant, whole, work / name, words, number, share * whole_s)
                moments.append(moment)
                print(line(moment), flush=True)
    return moments


def line(moment: Moment) -> str:
    result = "; ".join(moment.problems[:5]) or "equal"
    step = "-" if moment.step is None else moment.step
    cells = (moment.variant, moment.name, moment.after, moment.exit_code, step)
    return f"| {' | '.join(map(str, (*cells, moment.status or '-', result)))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path, help="an empty folder")
    parser.add_argument("--kills", type=int, default=20, help="number of SIGKILLs per variant")
    parser.add_argument("--signals", type=int, default=10, help="SIGTERMs, SIGUSR1s and SIGINTs")
    parser.add_argument("--random", type=int, default=0, help="SIGKILLs at random calls")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random calls")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS], default=["grpo"])
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Modules that the command imports later; forked processes then need no imports.
    import mlflow.tracking  # noqa: F401

    import tvg.callbacks.catching_up
    import tvg.jobs.train
    import tvg.tracking.mlflow_logger
    import tvg.training.grpo  # noqa: F401

    given.work.mkdir(parents=True, exist_ok=True)
    moments = run(
        given.work.resolve(),
        num_kills=given.kills,
        num_signals=given.signals,
        num_random=given.random,
        seed=given.seed,
        variants=given.variants,
    )
    bad = [moment for moment in moments if moment.problems]
    print(f"{len(moments) - len(bad)} of {len(moments)} runs equal the undisturbed run")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
