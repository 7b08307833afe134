"""Tests of atomic checkpoint saving and of the choice of the checkpoint to resume from."""

import pytest
import torch

from tvg.training.checkpoint import AtomicCheckpointIO, resume_path
from tvg.training.checkpoint_folder import LAST, checkpoint_name


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_read_back(tmp_path):
    path = tmp_path / "checkpoints" / LAST
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(3.0), "step": 2}, path)
    found = torch.load(path, weights_only=True)
    assert found["step"] == 2
    assert found["weights"].tolist() == [0.0, 1.0, 2.0]
    assert files(path.parent) == [LAST]


class Stop(BaseException):
    """Like Ctrl-C, which `except Exception` does not catch."""


class Stopping:
    def __reduce__(self):
        raise Stop


@pytest.mark.parametrize("former", [True, False])
def test_interrupted_save_keeps_the_former_checkpoint(tmp_path, former):
    path = tmp_path / LAST
    io = AtomicCheckpointIO()
    if former:
        io.save_checkpoint({"step": 1}, path)
    with pytest.raises(Stop):
        io.save_checkpoint({"weights": torch.zeros(100_000), "step": Stopping()}, path)
    assert files(tmp_path) == ([LAST] if former else [])
    if former:
        assert torch.load(path, weights_only=True) == {"step": 1}


def test_old_checkpoint_is_kept_until_the_new_one_is_complete(tmp_path, monkeypatch):
    path, seen = tmp_path / LAST, []
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)

    def replace(source, target):
        seen.append((torch.load(target)["step"], torch.load(source)["step"]))
        raise OSError(28, "No space left on device", str(source))

    monkeypatch.setattr("tvg.core.writing.os.replace", replace)
    with pytest.warns(UserWarning, match="No space left"):
        io.save_checkpoint({"step": 2}, path)
    assert seen == [(1, 2)]
    assert files(tmp_path) == [LAST]


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({}, folder / "checkpoints" / LAST)
    return folder


pytestmark = pytest.mark.filterwarnings("ignore:.*has no checksum")


@pytest.mark.parametrize("resume", [True, "auto", "checkpoints/last.ckpt"])
def test_broken_checkpoint_is_refused_before_the_run_starts(run_dir, resume):
    last = run_dir / "checkpoints" / LAST
    AtomicCheckpointIO().save_checkpoint({"step": 1}, last)
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    chosen = str(run_dir / resume) if isinstance(resume, str) and "/" in resume else resume
    with pytest.raises(ValueError, match=rf"^resume: {last}: does not match its checksum"):
        resume_path(chosen, run_dir)


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def three(tmp_path):
    """A run folder with the checkpoints of steps 5, 10 and 20."""
    folder = tmp_path / "run" / "checkpoints"
    for step in (10, 20, 5):
        AtomicCheckpointIO().save_checkpoint({"step": step}, folder / checkpoint_name(step))
    return folder


@pytest.mark.parametrize("resume", [True, "auto"])
def test_newest_checkpoint_is_resumed_and_named(three, resume, caplog):
    caplog.set_level("INFO")
    newest = three / "step_00000020.ckpt"
    assert resume_path(resume, three.parent) == newest
    assert caplog.messages == [f"resuming from {newest} (step 20)"]


@pytest.mark.parametrize("resume", [True, "auto"])
@pytest.mark.parametrize("how", ["truncated", "altered", "empty"])
def test_damaged_newest_checkpoint_is_reported_and_the_previous_used(three, resume, how, caplog):
    caplog.set_level("INFO")
    newest, previous = three / "step_00000020.ckpt", three / "step_00000010.ckpt"
    content = newest.read_bytes()
    if how == "altered":
        damage(newest)
    else:
        newest.write_bytes(content[: len(content) // 2] if how == "truncated" else b"")
    assert resume_path(resume, three.parent) == previous
    warning, chosen = caplog.messages
    assert warning.startswith(f"resume: {newest}: ")
    assert warning.endswith("; it is not used")
    assert chosen == f"resuming from {previous} (step 10)"


def test_all_checkpoints_damaged_is_an_error(three):
    for path in three.iterdir():
        damage(path)
    newest = three / "step_00000020.ckpt"
    with pytest.raises(ValueError, match=rf"^resume: {newest}: does not match its checksum"):
        resume_path("auto", three.parent)


@pytest.mark.parametrize("resume", [True, "auto"])
def test_run_folder_with_a_checkpoint_is_resumed(run_dir, tmp_path, resume):
    assert resume_path(resume, run_dir) == run_dir / "checkpoints" / LAST


def test_missing_checkpoint_is_an_error_unless_resume_is_auto(tmp_path):
    assert resume_path("auto", tmp_path / "fresh") is None
    with pytest.raises(ValueError, match=r"^resume: .*fresh holds no checkpoint .*resume=auto"):
        resume_path(True, tmp_path / "fresh")


@pytest.mark.parametrize("resume", [None, False])
def test_folder_with_a_run_is_refused_without_resume(run_dir, tmp_path, resume):
    assert resume_path(resume, tmp_path / "fresh") is None
    with pytest.raises(ValueError, match=rf"^run_dir: {run_dir} already holds a run .*resume=true"):
        resume_path(resume, run_dir)


def test_resume_accepts_the_path_of_a_checkpoint(run_dir, tmp_path):
    chosen = run_dir / "checkpoints" / LAST
    assert resume_path(str(chosen), tmp_path / "fresh") == chosen
    missing = tmp_path / "nowhere.ckpt"
    with pytest.raises(ValueError, match=rf"^resume: no such checkpoint: {missing}$"):
        resume_path(str(missing), tmp_path / "fresh")


def test_deepspeed_checkpoint_of_another_run_is_refused(tmp_path):
    """DeepSpeed's checkpoints are folders of pickles, which could run code."""
    foreign = tmp_path / "other" / "checkpoints" / LAST
    foreign.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"resume: .* as pickles, which can run code"):
        resume_path(str(foreign), tmp_path / "mine")
    assert resume_path(str(foreign), tmp_path / "other") == foreign
