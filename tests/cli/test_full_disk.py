"""Tests of full and read-only disks: training continues, the error names the disk, files remain."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from tvg.training.checkpoint import AtomicCheckpointIO

pytestmark = pytest.mark.slow

STEPS = 3
SMALL = [
    "prompt=short",
    "trainer=cpu",
    f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=3",
    "trainer.enable_progress_bar=false",
    "objective=sft",
    "reward=[]",
    "data.batch_size=2",
    "objective.micro_batch_size=1",
    "rollout.max_new_tokens=8",
    "data.limit_val=2",
    "callbacks.checkpoint.every_n_train_steps=1",
    "logger=csv",
]


class Disk:
    """A small disk and a file that fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.filler = path / "filler"

    def fill(self, *, but_bytes: int) -> None:
        state = os.statvfs(self.path)
        count = state.f_bavail * state.f_frsize - but_bytes
        with self.filler.open("ab") as file:
            file.write(bytes(max(0, count)))

    def free(self) -> None:
        self.filler.unlink(missing_ok=True)

    @staticmethod
    @contextmanager
    def read_only(folder: Path) -> Iterator[None]:
        """Makes a folder read-only, also for root, whom chmod does not restrict."""
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("small_disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount: {done.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name not in (".", "..")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert found["global_step"] == STEPS
    return found["state_dict"]


@pytest.mark.filterwarnings("ignore:no checkpoint was saved")
def test_training_on_a_full_disk_resumes_with_equal_weights(
    command, world, tiny_checkpoint, disk, tmp_path, monkeypatch
):
    import tvg.jobs.train

    words = ("train", *world, *SMALL, f"model.path={tiny_checkpoint}")
    assert command(*words, f"run_dir={tmp_path}/whole").code == 0
    run = disk.path / "run"
    with monkeypatch.context() as patch:  # the disk is filled after the start
        patch.setattr(
            tvg.jobs.train, "rehearse_export", lambda *_, **__: disk.fill(but_bytes=300_000)
        )
        error = command(*words, f"run_dir={run}").error
    assert error.startswith(
        f"{run}/checkpoints/step_00000003.ckpt: No space left on device: the disk of "
    )
    assert f"(mounted at {disk.path}) has 0.2 MiB left" in error
    assert leftovers(run) == []
    assert not (run / "checkpoints" / "last.ckpt").exists()
    disk.free()
    assert command(*words, f"run_dir={run}", "resume=auto").code == 0
    one, other = weights(tmp_path / "whole"), weights(run)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert (run / "export").is_dir()


@pytest.mark.filterwarnings("ignore:no checkpoint was saved")
def test_training_survives_a_temporarily_full_disk(
    command, world, tiny_checkpoint, disk, monkeypatch
):
    saves = []

    former = AtomicCheckpointIO.save_checkpoint

    def save(self, *args, **kwargs):
        disk.free() if len(saves) != 1 else disk.fill(but_bytes=100_000)
        former(self, *args, **kwargs)
        saves.append(self.failure)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    run = disk.path / "run"
    words = ("train", *world, *SMALL, f"model.path={tiny_checkpoint}", f"run_dir={run}")
    assert command(*words).code == 0
    assert [failure is None for failure in saves] == [True, False, True, True]
    assert len(weights(run)) > 0
    assert leftovers(run) == []


@pytest.mark.filterwarnings("ignore:no checkpoint was saved")
def test_training_with_a_read_only_checkpoint_folder_resumes_with_equal_weights(
    command, world, tiny_checkpoint, disk, tmp_path, monkeypatch
):
    words = ("train", *world, *SMALL, f"model.path={tiny_checkpoint}")
    assert command(*words, f"run_dir={tmp_path}/whole").code == 0
    run = disk.path / "run"
    former, is_read_only = AtomicCheckpointIO.save_checkpoint, []
    with ExitStack() as stack, monkeypatch.context() as patch:

        def save(self, *args, **kwargs):
            former(self, *args, **kwargs)
            if not is_read_only:  # after the first step
                is_read_only.append(True)
                stack.enter_context(disk.read_only(run / "checkpoints"))

        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
        error = command(*words, f"run_dir={run}").error
    assert error == (
        f"{run}/checkpoints/step_00000003.ckpt: Read-only file system; make the folder writable, "
        "then continue with the same command and resume=true"
    )
    assert leftovers(run) == []
    with disk.read_only(run):
        error = command(*words, f"run_dir={run}", "resume=true").error
    assert error.startswith(f"cannot write results to the output folder {run}")
    done = command(*words, f"run_dir={run}", "resume=true")
    assert done.code == 0, done.err
    assert f"resuming from {run}/checkpoints/step_00000001.ckpt (step 1)" in done.err + done.out
    one, other = weights(tmp_path / "whole"), weights(run)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_export_on_a_full_disk_can_be_repeated(command, world, tiny_checkpoint, disk, monkeypatch):
    import tvg.jobs.train

    run = disk.path / "run"
    words = ("train", *world, *SMALL, f"model.path={tiny_checkpoint}", f"run_dir={run}")
    former = tvg.jobs.train.export_checkpoint

    def export(*args, **kwargs):
        disk.fill(but_bytes=300_000)
        return former(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(tvg.jobs.train, "export_checkpoint", export)
        error = command(*words).error
    assert error.startswith(f"{run}/export: No space left on device: the disk of {run} (mounted")
    assert leftovers(run) == []
    assert not (run / "export").exists()
    assert len(weights(run)) > 0
    disk.free()
    assert command(*words, "resume=true").code == 0
    assert (run / "export" / "config.json").is_file()


def test_evaluation_on_a_full_disk_can_be_repeated(command, world, tiny_checkpoint, disk, tmp_path):
    words = ("evaluate", *world, "prompt=short", "rollout.max_new_tokens=8", "split=val")
    words = (*words, f"model.path={tiny_checkpoint}", "device=cpu", "logger=[]")
    assert command(*words, f"run_dir={tmp_path}/whole").code == 0
    run = disk.path / "evaluation"
    run.mkdir()
    disk.fill(but_bytes=0)
    error = command(*words, f"run_dir={run}").error
    assert f"No space left on device: the disk of {run} (mounted at {disk.path})" in error
    assert leftovers(run) == []
    assert not (run / "metrics.json").exists()
    disk.free()
    assert command(*words, f"run_dir={run}").code == 0
    for name in ("predictions.jsonl", "metrics.json"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_prepare_on_a_full_disk_names_cache_or_report(command, world, disk, tmp_path):
    cache = disk.path / "cache"
    cache.mkdir()
    words = ("prepare", *world, "data/cache=frames", f"data.cache.folder={cache}", "logger=[]")
    words = (*words, "prepare.num_workers=0")
    disk.fill(but_bytes=4096)
    error = command(*words).error
    assert str(cache) in error
    assert "No space left on device" in error or "needs" in error, error
    assert leftovers(cache) == []
    disk.free()
    assert command(*words).code == 0
    disk.fill(but_bytes=0)
    report = disk.path / "report.json"
    error = command(*words, f"prepare.report={report}").error
    assert error.startswith(f"{report}: No space left on device: the disk of {disk.path} ")
    assert not report.exists()


def test_predict_on_a_full_disk_names_the_picture(
    command, world, tiny_checkpoint, disk, tiny_world
):
    video = next((tiny_world / "videos").glob("*.mp4"))
    words = ("predict", f"video={video}", "query=the red ball moves", "device=cpu", "prompt=short")
    disk.fill(but_bytes=8192)
    picture = disk.path / "answer.png"
    error = command(*words, f"model.path={tiny_checkpoint}", f"picture={picture}").error
    assert error.startswith(f"{picture}: No space left on device: the disk of {disk.path} ")
    assert [path.name for path in disk.path.iterdir()] == ["filler"]


def test_training_needs_no_space_in_tmpdir(
    command, world, tiny_checkpoint, disk, tmp_path, monkeypatch
):
    disk.fill(but_bytes=16_384)
    monkeypatch.setenv("TMPDIR", str(disk.path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    words = ("train", *world, *SMALL, f"model.path={tiny_checkpoint}", f"run_dir={tmp_path}/run")
    done = command(*words)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert done.code == 0, done.err
    assert len(weights(tmp_path / "run")) > 0
    assert (tmp_path / "run" / "export" / "config.json").is_file()
