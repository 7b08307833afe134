"""Tests of failing commands: one message and exit code 2 for user errors, a traceback for bugs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tvg.config.entry import user_message

PROJECT = Path(__file__).parents[2]

COMMAND = """
from pathlib import Path
from tvg.config import build, entry_point

@entry_point("train", conf_dir=Path({conf_dir!r}))
def main(cfg):
    {body}
    print("done", cfg.seed)

main()
"""


@pytest.fixture
def conf_dir(conf_dir: Path) -> Path:
    """Removes the rewards, because their check imports torch, which takes seconds."""
    main = conf_dir / "train.yaml"
    main.write_text(main.read_text().replace("  - reward: [iou]\n", ""))
    return conf_dir


@pytest.fixture
def run(tmp_path, conf_dir):
    def run(*words: str, body: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "tvg-train.py"
        script.write_text(COMMAND.format(conf_dir=str(conf_dir), body=body))
        return subprocess.run(
            [sys.executable, str(script), *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT), **env},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_successful_command_prints_no_message(run):
    done = run("seed=7")
    assert done.stdout == "done 7\n"
    assert done.returncode == 0
    assert done.stderr == ""


def test_config_problem_is_one_message(run):
    done = run("model.width=???")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "tvg-train.py: model.width: a value is needed (model.width=...)\n" in done.stderr
    assert done.stdout == ""


def test_full_error_shows_traceback_of_config_problem(run):
    done = run("model.width=???", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_user_error_in_job_is_one_message(run):
    done = run(body="build({'_target_': 'fractions.Fraction', 'numerator': 'no'})")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Invalid literal for Fraction: 'no'" in done.stderr


def test_message_is_the_first_line_of_stderr(run):
    done = run("seed=7", body="build({'_target_': 'fractions.Fraction', 'numerator': 'no'})")
    first, *rest = done.stderr.splitlines()
    assert first.startswith("tvg-train.py: ")
    assert rest == ["(HYDRA_FULL_ERROR=1 shows where it was raised)"]


def test_failed_job_of_sweep_is_named(run):
    check = "if cfg.seed == 2: build({'_target_': 'fractions.Fraction', 'numerator': 'no'})"
    done = run("-m", "seed=1,2,3", body=check)
    assert done.returncode == 2
    assert [s for s in done.stdout.splitlines() if "done" in s] == ["done 1", "done 3"]
    assert "['seed=2']" in done.stderr
    assert "Invalid literal for Fraction: 'no'" in done.stderr
    assert "Traceback" not in done.stderr


OWN = "import os, sys; print(os.getpid(), sys.argv[1:])"
TWO = ("+trainer.devices=2", "+trainer.accelerator=cpu", "+trainer.max_steps=1")


def test_job_of_several_processes_runs_as_its_own_command(run):
    done = run("-m", "seed=1,2", *TWO, "hydra.sweep.dir=sweep", body=OWN)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "seed=" in line and "hydra.run" in line]
    assert len({line.split()[0] for line in lines}) == 2, "expected two processes"
    for line, seed in zip(lines, (1, 2), strict=True):
        assert "-m" not in line
        assert f"'seed={seed}'" in line
        assert f"/sweep/{seed - 1}" in line  # the folder of the sweep's job


def test_failed_command_of_a_job_is_reported(run):
    body = "import sys; sys.exit(7) if cfg.seed == 1 else None"
    done = run("-m", "seed=1,2", *TWO, body=body)
    assert done.returncode != 0
    assert "the command of this job ended with exit code 7" in done.stderr
    assert "done 2" in done.stdout


def test_sweep_in_several_ranks_is_refused(run):
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    done = run("-m", "seed=1,2", **ranks)
    assert "--multirun: WORLD_SIZE=2 starts several processes" in done.stderr
    assert "done" not in done.stdout


def test_warning_becomes_a_log_line(run):
    done = run(body="import warnings; warnings.warn('few workers')", **{"PYTHONWARNINGS": "always"})
    assert "py.warnings" in done.stdout + done.stderr


def test_full_error_shows_traceback_of_job(run):
    body = "build({'_target_': 'fractions.Fraction', 'numerator': 'no'})"
    done = run(body=body, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "name"), [(15, 143, "SIGTERM"), (10, 138, "SIGUSR1"), (2, 130, "SIGINT")]
)
@pytest.mark.parametrize("full_error", ["0", "1"])
def test_signal_ends_command_with_its_exit_code(run, number, code, name, full_error):
    body = f"import os; os.kill(os.getpid(), {number})"
    done = run(body=body, HYDRA_FULL_ERROR=full_error)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == (
        f"tvg-train.py: stopped by {name}\nto resume: run the same command again\n"
    )


def test_foreign_value_error_shows_a_traceback(run):
    done = run(body="int('x')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_command_started_by_a_command_prints_one_message(run):
    again = "subprocess.run([sys.executable, __file__, 'model.width=???']).returncode"
    done = run(body=f"import subprocess, sys; print({again})")
    assert done.stdout == "2\ndone 0\n"
    assert "Traceback" not in done.stderr


def test_sweep_stops_at_config_problem(run):
    done = run("-m", "seed=1,???")
    assert done.returncode == 2
    assert "done 1" in done.stdout
    assert "seed: a value is needed" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_config_file_is_named(run, conf_dir):
    (conf_dir / "model/small.yaml").write_text("a: [1\n")
    done = run()
    assert done.returncode == 2
    assert "model/small.yaml" in done.stderr
    assert "line 2" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_option_lists_the_available_options(run):
    done = run("model=smal")
    assert done.returncode == 2
    assert "model: no option 'smal'; did you mean 'small'?" in done.stderr
    assert "Available options in 'model':\n\tbare\n\tbig\n\tsmall\n" in done.stderr
    assert "search path" not in done.stderr


def test_uncreatable_output_folder_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("hydra.run.dir=file/run")
    assert done.returncode == 2
    assert "file/run: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def shipped(tmp_path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a script named tvg-train with the shipped config and an empty job."""
    script = tmp_path / "tvg-train"
    script.write_text(COMMAND.format(conf_dir=str(PROJECT / "conf"), body=""))
    return subprocess.run(
        [sys.executable, str(script), *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_all_misspelt_overrides_are_named_with_suggestions(tmp_path):
    done = shipped(tmp_path, "sed=1", "model=tiny", "objective.group_sise=4")
    assert done.returncode == 2
    assert done.stderr.splitlines()[:2] == [
        "tvg-train: sed: no such config key; did you mean 'seed'?",
        "objective.group_sise: no such config key; did you mean 'objective.group_size'?",
    ]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs"))


def test_help_shows_groups_and_config(tmp_path):
    done = shipped(tmp_path, "--help")
    assert done.returncode == 0
    assert "strategy: auto, ddp, deepspeed_zero1" in done.stdout
    assert "max_steps:" in done.stdout
    assert "$" + "CONFIG" not in done.stdout


def test_error_in_data_loader_worker_is_one_message():
    ours = PROJECT / "tvg" / "data" / "decode.py"
    text = (
        "Caught VideoError in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n"
        '  File "/somewhere/torch/utils/data/_utils/worker.py", line 3, in _worker_loop\n'
        "    data = fetch()\n"
        f'  File "{ours}", line 9, in read\n'
        '    raise VideoError("clip.mp4: no frames")\n'
        "tvg.data.video.decode.VideoError: clip.mp4: no frames\n"
    )
    assert user_message(ValueError(text)) == "clip.mp4: no frames"
    foreign = text.replace(str(ours), "/somewhere/else.py")
    assert user_message(ValueError(foreign)) is None


def test_file_error_names_the_file():
    assert user_message(FileNotFoundError(2, "No such file", "x.json")) == "x.json: No such file"
    assert user_message(RuntimeError("x")) is None
