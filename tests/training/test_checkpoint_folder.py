"""Tests of the names and links of checkpoints, and of which checkpoints are kept."""

import os

import pytest

from tvg.training.checkpoint_folder import (
    BEST,
    LAST,
    checkpoint_name,
    checkpoints_of,
    step_of,
    tidy,
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def add(folder, *steps):
    for step in steps:
        (folder / checkpoint_name(step)).write_text(str(step))


def steps(folder):
    return sorted(step_of(path) for path in folder.glob("step_*"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_step_is_read_from_name_and_link(folder):
    add(folder, 7)
    tidy(folder, newest=7, keep_last=1, best=None)
    assert step_of(folder / LAST) == 7
    assert step_of(folder / "step_123456789.ckpt") == 123_456_789
    assert step_of(folder / "other.ckpt") is None


def test_checkpoints_are_ordered_by_step(folder):
    add(folder, 9, 123_456_789, 10)
    (folder / "step_notes.ckpt").touch()
    found = [step_of(path) for path in checkpoints_of(folder)]
    assert found == [123_456_789, 10, 9]


def test_last_checkpoint_of_an_older_version_is_the_oldest(folder):
    (folder / LAST).write_text("old")
    assert checkpoints_of(folder) == [folder / LAST]
    add(folder, 3)
    assert checkpoints_of(folder) == [folder / checkpoint_name(3), folder / LAST]
    tidy(folder, newest=3, keep_last=2, best=None)
    assert (folder / LAST).read_text() == "3"
    assert checkpoints_of(folder) == [folder / checkpoint_name(3)]


def test_missing_folder_has_no_checkpoints(folder):
    assert checkpoints_of(folder / "none") == []


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [40]), (2, [30, 40]), (9, [10, 20, 30, 40])])
def test_last_k_are_kept(folder, keep_last, kept):
    add(folder, 10, 20, 30, 40)
    tidy(folder, newest=40, keep_last=keep_last, best=None)
    assert steps(folder) == kept
    assert (folder / LAST).read_text() == "40"
    assert not (folder / BEST).exists()


def test_best_is_kept_in_addition(folder):
    add(folder, 10, 20, 30, 40)
    tidy(folder, newest=40, keep_last=2, best=10)
    assert steps(folder) == [10, 30, 40]
    assert (folder / BEST).read_text() == "10"
    add(folder, 50)
    tidy(folder, newest=50, keep_last=2, best=50)
    assert steps(folder) == [40, 50]
    assert (folder / BEST).read_text() == "50"


def test_former_best_is_kept_if_the_best_could_not_be_written(folder):
    add(folder, 10, 20)
    tidy(folder, newest=20, keep_last=1, best=10)
    add(folder, 40)
    tidy(folder, newest=40, keep_last=1, best=30)
    assert steps(folder) == [10, 40]
    assert (folder / BEST).read_text() == "10"


def test_later_checkpoints_of_an_abandoned_continuation_are_removed(folder):
    add(folder, 10, 20, 30)
    tidy(folder, newest=30, keep_last=3, best=None)
    add(folder, 15)  # the run was continued from step 10
    tidy(folder, newest=15, keep_last=3, best=None)
    assert steps(folder) == [10, 15]
    assert (folder / LAST).read_text() == "15"


def test_link_is_replaced_without_a_gap(folder, monkeypatch):
    add(folder, 10, 20)
    tidy(folder, newest=10, keep_last=1, best=None)
    add(folder, 20)
    seen = []
    replace = os.replace

    def watched(source, target):
        seen.append((folder / LAST).read_text())
        replace(source, target)

    monkeypatch.setattr("tvg.training.checkpoint_folder.os.replace", watched)
    tidy(folder, newest=20, keep_last=1, best=None)
    assert seen == ["10"]
    assert names(folder) == [LAST, checkpoint_name(20)]


def test_checkpoints_that_are_folders_are_linked_and_removed(folder):
    (folder / LAST).mkdir()  # written by DeepSpeed under an older version
    for step in (10, 20):
        (folder / checkpoint_name(step) / "states").mkdir(parents=True)
    tidy(folder, newest=20, keep_last=1, best=None)
    assert names(folder) == [LAST, checkpoint_name(20)]
    assert (folder / LAST / "states").is_dir()


def test_kill_while_a_folder_is_removed_leaves_no_incomplete_checkpoint(folder, monkeypatch):
    for step in (10, 20):
        (folder / checkpoint_name(step) / "states").mkdir(parents=True)

    def killed(path, **_):
        if checkpoint_name(10) in str(path) and path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("tvg.training.checkpoint_folder.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        tidy(folder, newest=20, keep_last=1, best=None)
    assert checkpoints_of(folder) == [folder / checkpoint_name(20)]


def test_file_system_without_links_still_has_checkpoints(folder, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    add(folder, 10, 20)
    tidy(folder, newest=20, keep_last=1, best=None)
    assert names(folder) == [checkpoint_name(20)]
    assert "cannot be linked" in caplog.text
