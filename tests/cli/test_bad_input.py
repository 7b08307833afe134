"""Tests of user errors: each gives one message that names the cause, and leaves no partial file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Evaluation reads annotations by the same code as training.
ANNOTATED = ("train", pytest.param("evaluate", marks=pytest.mark.slow), "prepare")
WITH_MODEL = ("train", "evaluate", "predict")
HALF_DONE = ("*.tmp", "*.partial*", "export", ".export*", "*.ckpt", "*.png", "predict*.json*")


@pytest.fixture
def files(tmp_path, tiny_world):
    """Creates a folder with one valid video and its annotations."""
    folder = tmp_path / "given"
    (folder / "videos").mkdir(parents=True)
    good = sorted((tiny_world / "videos").iterdir())[0]
    shutil.copy(good, folder / "videos" / "clip.mp4")
    annotate(folder, "clip")
    return folder


def annotate(folder: Path, *video_ids: str, times=((1.0, 3.0),)) -> None:
    entry = {
        "duration": 10.0,
        "timestamps": [list(t) for t in times],
        "sentences": ["a ball rolls"] * len(times),
    }
    (folder / "a.json").write_text(json.dumps(dict.fromkeys(video_ids, entry)))


@pytest.fixture
def attempt(command, files, tiny_checkpoint):
    """Returns a function that runs a command on those files and returns its error message."""

    def run(name: str, *words: str, video: str = "clip.mp4") -> str:
        given = [f"run_dir={files.parent / 'run'}", f"hydra.run.dir={files.parent / 'run'}"]
        if name in WITH_MODEL:
            given.append(f"model.path={tiny_checkpoint}")
        if name == "predict":
            given += [f"video={files / 'videos' / video}", "query=a ball"]
            given += ["data/clip@clip=one_token"]
        else:
            given += [
                "data=charades",
                "data/clip=one_token",
                f"data.video_dir={files / 'videos'}",
            ]
            given += [f"data.{split}_file={files / 'a.json'}" for split in ("train", "val", "test")]
            given += ["data.num_workers=0", "data/cache=none"]
        if name == "prepare":
            given += ["prepare.num_workers=0"]
        if name == "train":
            given += ["objective=sft", "reward=[]", "prompt=short", "trainer=cpu", "logger=[]"]
            given += ["trainer.max_steps=1", "trainer.enable_progress_bar=false"]
        if name == "evaluate":
            given += ["logger=[]", "prompt=short"]
        if name == "prepare":
            given += [f"prepare.report={files.parent / 'run' / 'report.json'}"]
        keys = {word.partition("=")[0] for word in words}
        given = [word for word in given if word.partition("=")[0] not in keys]
        done = command(name, *given, *words)
        error = done.error
        left = [p.name for mark in HALF_DONE for p in (files.parent / "run").rglob(mark)]
        assert left == []
        assert not (files.parent / "run" / "metrics.json").exists()
        return error

    return run


@pytest.mark.parametrize("name", ANNOTATED)
def test_missing_video_of_an_id_is_named(attempt, files, name):
    annotate(files, "clip", "gone")
    error = attempt(name)
    looked_for = f"looked for {files / 'videos' / 'gone'}.{{mp4,mkv,webm,avi,mov,m4v}}"
    if name == "prepare":  # reports all problems before it fails
        assert error == f"gone: no video file; {looked_for}"
        report = json.loads((files.parent / "run" / "report.json").read_text())
        assert report["videos"] > 0  # the report remains after the failure
        return
    assert f"{files / 'a.json'}: 1 of 2 ids have no video file, the first is 'gone'" in error
    assert looked_for in error


def test_predict_names_the_missing_video(attempt, files):
    error = attempt("predict", video="gone.mp4")
    assert error == f"{files / 'videos' / 'gone.mp4'}: no such file; expected a video file"


@pytest.mark.parametrize("name", [*ANNOTATED, "predict"])
@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_unreadable_video_is_named(attempt, files, name, damage):
    path = files / "videos" / "clip.mp4"
    if damage == "text":
        path.write_text("not a video at all\n" * 100)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = attempt(name)
    assert error.startswith(f"{path}: ")
    assert "not a readable video" in error or "truncated" in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("train", "", "the annotation file is empty; expected JSON"),
        ("prepare", "", "the annotation file is empty; expected JSON"),
        ("train", "{}", "the annotation file holds no video id"),
        ("train", '{"clip": ', "not JSON: Expecting value at line 1, column 10"),
    ],
)
def test_empty_or_invalid_annotation_file_is_named(attempt, files, name, text, expected):
    (files / "a.json").write_text(text)
    assert attempt(name) == f"{files / 'a.json'}: {expected}"


@pytest.mark.parametrize("name", ANNOTATED)
def test_missing_annotation_file_is_named(attempt, files, name):
    (files / "a.json").unlink()
    assert attempt(name) == f"{files / 'a.json'}: no such annotation file"


def test_annotations_with_only_reversed_segments_are_refused(attempt, files):
    annotate(files, "clip", times=((3.0, 1.0), (2.0, 2.0)))
    error = attempt("train")
    assert error.startswith(f"{files / 'a.json'}: no example is left.")
    assert "2 with start >= end, dropped: clip:0, clip:1" in error


def test_some_reversed_segments_are_counted(command, files):
    annotate(files, "clip", times=((3.0, 1.0), (1.0, 3.0)))
    done = command(
        "prepare",
        "data=charades",
        f"data.video_dir={files / 'videos'}",
        "data/cache=none",
        *(f"data.{split}_file={files / 'a.json'}" for split in ("train", "val", "test")),
        "prepare.report=report.json",
    )
    assert done.code == 0
    splits = json.loads(Path("report.json").read_text())["splits"]
    assert (splits["train"]["queries"], splits["train"]["kept"]) == (2, 1)
    defect = {"count": 1, "action": "dropped", "examples": ["clip:0"]}
    assert splits["train"]["defects"]["with start >= end"] == defect
    assert splits["test"]["kept"] == 2
    assert splits["test"]["defects"]["with start >= end"]["action"] == "kept"
    assert "train: 1 with start >= end, dropped: clip:0\n" in done.out


@pytest.mark.parametrize("name", ANNOTATED)
def test_unknown_dataset_lists_the_available_ones(command, name, tmp_path):
    error = command(name, "data=charadess").error
    assert error.startswith("data: no option 'charadess'; did you mean 'charades'")
    assert "charades\n" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "word", "meant"),
    [
        ("train", "data.on_mising=skip", "data.on_missing"),
        ("train", "trainer.precison=bf16-mixed", "trainer.precision"),
        ("evaluate", "splitt=val", "split"),
        ("predict", "querry=x", "query"),
        ("prepare", "prepare.reprot=x", "prepare.report"),
    ],
)
def test_misspelt_override_suggests_the_key(command, tmp_path, name, word, meant):
    key = word.partition("=")[0]
    error = command(name, word).error
    assert error.splitlines()[0] == f"{key}: no such config key; did you mean {meant!r}?"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", ["a [red] ball", "a (red) ball: it falls", 'who says "no"?', "it's"]
)
def test_query_needs_no_quotes_for_hydra(command, tiny_checkpoint, value):
    words = ["video=x.mp4", f"query={value}", f"model.path={tiny_checkpoint}"]
    assert command("predict", *words).error == "x.mp4: no such file; expected a video file"


@pytest.mark.parametrize("name", WITH_MODEL)
def test_missing_model_folder_is_named(attempt, tmp_path, name):
    missing = tmp_path / "no" / "model"
    assert attempt(name, f"model.path={missing}") == f"model.path: no such folder: {missing}"


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_recorded_prompt_names_missing_model_folder(attempt, tmp_path, name):
    error = attempt(name, f"model.path={tmp_path / 'no'}", "prompt=recorded")
    assert error == f"model.path: no such folder: {tmp_path / 'no'}"


def test_folder_without_model_is_refused(attempt, files):
    error = attempt("train", f"model.path={files}")
    assert error.startswith(f"model.path: {files} contains no config.json")


def test_a_folder_without_a_model_gives_no_warning_about_its_record(command, files):
    words = [f"model.path={files}", "prompt=recorded", "video=x.mp4", "query=a ball"]
    done = command("predict", *words, "data/clip@clip=recorded")
    assert done.error.startswith(f"model.path: {files} contains no config.json")
    assert "tvg.yaml" not in done.err


@pytest.mark.parametrize(
    ("name", "key", "leaf"),
    [
        ("train", "run_dir", ""),
        ("evaluate", "run_dir", ""),
        ("predict", "picture", "/x.png"),
        ("prepare", "prepare.report", "/x.json"),
    ],
)
def test_unwritable_output_folder_is_named(attempt, files, name, key, leaf):
    blocked = files / "a.json" / "out"  # below a file: not even root can write there
    error = attempt(name, f"{key}={blocked}{leaf}")
    expected = f"cannot write results to the output folder {blocked}: {files / 'a.json'} is a file"
    if key != "run_dir":
        expected = f"{key}: {expected}"
    assert error == f"{expected}, not a folder"


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("evaluate", "split=tets", "split: expected one of train, val, test, got 'tets'"),
        ("evaluate", "device=gpu", "device: expected a device such as cpu or cuda:0, got 'gpu'"),
        ("predict", "query=''", "query: expected a sentence, got an empty text"),
        ("predict", "window=[5,2]", "window: expected [start_s, end_s] with start_s < end_s"),
        ("predict", "window=5", "window: expected [start_s, end_s] with start_s < end_s, got 5"),
        ("predict", "truth=[a,b]", "truth: expected [start_s, end_s] with start_s < end_s"),
        ("predict", "window=[90,95]", "clip.mp4: expected a part of the file, 0 to "),
        ("predict", "picture=x.docx", "cannot write a picture to x.docx: the suffix must be"),
        ("train", "data.eval_batch_size=0", "data.eval_batch_size: expected at least 1, got 0"),
        ("train", "data.limit_val=0", "data.limit_val: expected at least 1, got 0"),
        (
            "train",
            "objective.schedule.warmup_steps=9",
            "objective.schedule.warmup_steps: expected 0 to 1",
        ),
        ("train", "resume=nowhere.ckpt", "resume: no such checkpoint: nowhere.ckpt"),
        ("train", "data.max_prompt_tokens=3", "clip:0: the prompt has "),
    ],
)
def test_invalid_value_is_named(attempt, name, word, message):
    assert message in attempt(name, word)


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "prepare"])
def test_help_is_readable(command, name, tmp_path):
    done = command(name, "--help")
    assert done.code == 0
    first = done.out.lstrip().splitlines()[0]
    assert first.startswith(f"tvg-{name}: ")
    assert f"usage: tvg-{name} [group=option ...] [key.of.config=value ...]" in done.out
    for part in ("== Groups", "== Config", "experiment:", "seed: 0", "HYDRA_FULL_ERROR=1"):
        assert part in done.out, part
    assert max(map(len, done.out.splitlines())) <= 1000
    assert done.err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_command_in_own_process_fails_with_one_message(files):
    video = files / "videos" / "clip.mp4"
    video.write_bytes(video.read_bytes()[:3000])
    (files / "config.json").write_text("{}")  # the model is loaded after the video
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tvg.cli.predict",
            f"video={video}",
            "query=a ball",
            "picture=out/p.png",
            f"model.path={files}",
        ],
        cwd=files.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert lines[-2].startswith(f"tvg-predict: {video}: ")
    assert done.stdout == ""
    assert not (files.parent / "out").exists()


@pytest.mark.parametrize("key", ["data.cache.folder", "data.video_dir"])
def test_folder_named_like_a_number_needs_quotes(command, key):
    error = command("prepare", "data=charades", f"{key}=2024").error
    assert error == f"{key}: expected text, got 2024: quote it ({key}='\"2024\"')"
