"""Tests of tvg-prepare: real annotation files, broken videos, and a cache that survives kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.broken_videos import KINDS, UNDECODABLE_KINDS, write_broken

# data option, file, number of videos, queries, segments that end more than 0 / 1e-6 / 0.5 / 1 s
# after the video, reversed segments, segments that start after the video
REAL = [
    ("charades", "charades_sta/train.json", 5338, 12408, (1789, 1789, 1546, 671), 4, 3),
    ("charades", "charades_sta/val.json", 1334, 3720, (562, 562, 514, 228), 0, 0),
    ("activitynet", "activitynet/train.json", 10009, 37421, (261, 29, 0, 0), 4, 0),
    ("activitynet", "activitynet/val_2.json", 4885, 17031, (111, 1, 0, 0), 0, 0),
    ("timerft", "timer1/train_2k5.json", 2475, 2500, (48, 34, 31, 29), 0, 0),
    ("tvgbench", "timer1/tvgbench.json", None, 800, (27, 27, 21, 10), 11, 0),
]
COMMAND = [sys.executable, "-m", "tvg.cli.prepare"]
CHECK = ["data.video_dir=null", "prepare.check_only=true", "prepare.report=r.json"]


def report_of(path: Path | str = "r.json") -> dict:
    report = json.loads(Path(path).read_text())
    for part in (report, *report["splits"].values()):
        assert part["queries"] == part["kept"] + sum(part["dropped"].values())
        assert set(part["late_ends"]) == {"0", "1e-06", "0.5", "1"}
    return report


def count(report: dict, defect: str) -> int:
    return report["defects"].get(defect, {"count": 0})["count"]


@pytest.mark.slow  # the files have 10,000 queries and more
@pytest.mark.parametrize(
    ("option", "file", "videos", "queries", "late", "num_reversed", "num_late_starts"),
    REAL,
    ids=[row[1] for row in REAL],
)
def test_report_of_real_annotation_files(
    command, shared_dir, option, file, videos, queries, late, num_reversed, num_late_starts
):
    path = shared_dir / "data" / file
    done = command("prepare", f"data={option}", f"data.annotation_file={path}", *CHECK)
    assert done.code == 0, done.err
    report = report_of()
    assert report["queries"] == queries
    assert videos is None or report["videos"] == videos
    assert tuple(report["late_ends"].values()) == late
    assert count(report, "with start >= end") == num_reversed
    assert count(report, "starting after the video's end") == num_late_starts
    assert (report["missing"], report["unreadable"], report["bytes"]) == ([], {}, 0)
    (split,) = report["splits"]  # only this file
    assert split == ("train" if "train" in file else "test")
    if split == "test":  # a benchmark keeps all queries
        assert report["kept"] == queries
    assert f"{queries:,}" in done.out


def test_variants_of_the_charades_format_are_read(command, shared_dir):
    entries = json.loads((shared_dir / "data" / "charades_sta" / "val.json").read_text())
    other = {
        video: {**{k: v for k, v in entry.items() if k != "duration"}, "fps": 24, "tags": ["x"]}
        | {
            "video_duration": entry["duration"],
            "sentences": [f"  {s}\n" for s in entry["sentences"]],
        }
        for video, entry in entries.items()
    }
    Path("val.json").write_text(json.dumps(other))
    done = command("prepare", "data=charades", "data.annotation_file=val.json", *CHECK)
    assert done.code == 0, done.err
    report = report_of()
    assert (report["queries"], report["videos"]) == (3720, 1334)
    assert tuple(report["late_ends"].values()) == (562, 562, 514, 228)


def test_all_splits_of_a_dataset_are_reported(command, shared_dir):
    folder = shared_dir / "data" / "charades_sta"
    files = [f"data.{split}_file={folder}/{name}.json" for split, name in (
        ("train", "train"), ("val", "val"), ("test", "val"))]  # fmt: skip
    done = command("prepare", "data=charades", *files, *CHECK, "prepare.overview=o.png")
    assert done.code == 0, done.err
    report = report_of()
    assert report["queries"] == 12408 + 3720  # a file used for two splits counts once
    assert {s: r["queries"] for s, r in report["splits"].items()} == {
        "train": 12408,
        "val": 3720,
        "test": 3720,
    }
    assert Path("o.png").read_bytes().startswith(b"\x89PNG")
    done = command("prepare", "data=charades", *files, *CHECK, "prepare.split=val")
    assert list(report_of()["splits"]) == ["val"]


# -- videos ---------------------------------------------------------------------------------------


@pytest.fixture
def collection(tmp_path, write_video):
    """Returns a function that writes valid and broken videos with two queries each."""

    def write(num_good: int, kinds: list[str], *, folder: Path = tmp_path) -> list[str]:
        videos = folder / "videos"
        videos.mkdir()
        first = write_video(videos / "good0.mp4", fps=10, num_frames=30)
        for index in range(1, num_good):
            copy = videos / f"good{index}.mp4"
            shutil.copy(first, copy)
            with copy.open("ab") as file:  # different bytes, so that each has a cache entry
                file.write(b"\0\0\0\x0cfree" + index.to_bytes(4, "big"))
        names = [f"{kind}_{index}" for index, kind in enumerate(kinds)]
        for name, kind in zip(names, kinds, strict=True):
            write_broken(videos / f"{name}.mp4", kind, lambda path: Path(shutil.copy(first, path)))
        entry = {"duration": 3.0, "timestamps": [[0, 1], [1, 2]], "sentences": ["a", "b"]}
        everything = [f"good{index}" for index in range(num_good)] + names
        (folder / "a.json").write_text(json.dumps(dict.fromkeys(everything, entry)))
        return [
            "data=charades",
            "data/clip=one_token",
            f"data.annotation_file={folder}/a.json",
            f"data.video_dir={videos}",
            f"data.cache.folder={folder}/cache",
            f"prepare.report={folder}/r.json",
        ]

    return write


def test_few_videos_start_no_worker_processes(command, collection, monkeypatch):
    def start(**_):
        raise AssertionError("a worker process was started")

    monkeypatch.setattr("tvg.preparation.pool.ProcessPool", start)
    options = [*collection(3, ["text"]), "data.on_missing=skip", "prepare.num_workers=2"]
    for present in (0, 3):
        done = command("prepare", *options, "prepare.timeout_s=60")
        assert done.code == 0, done.err
        assert f"{present} already present" in done.out
    assert report_of()["unreadable"].keys() == {str(Path("videos/text_0.mp4").absolute())}


def test_unusable_queries_are_reported(command, collection, tmp_path):
    options = collection(2, [])
    data = json.loads((tmp_path / "a.json").read_text())
    data["good0"]["sentences"] = ["a \ud800 b", "fine"]
    data["good1"]["sentences"] = ["fine", "\x1b[2J" + "x" * 1_000_000]
    (tmp_path / "a.json").write_text(json.dumps(data))
    done = command("prepare", *options, "prepare.num_workers=0")
    assert "2 videos or queries cannot be used" in done.error
    assert "good0:0: the query holds \\ud800" in done.error
    assert (
        "good1:1: the query has 1000004 characters, more than data.max_query_chars=4000"
        in done.error
    )
    report = report_of("r.json")
    assert (report["kept"], report["dropped"]) == (2, {"with an unusable query": 2})
    assert list(report["unusable_queries"]) == ["good0:0", "good1:1"]
    done = command("prepare", *options, "prepare.num_workers=0", "data.on_missing=skip")
    assert done.code == 0, done.err
    assert "2 with an unusable query, skipped: good0:0, good1:1" in done.out


def entries(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.name: p.read_bytes() for p in files if p.name != ".prepare.lock"}


HERE = ["prepare.num_workers=0", "prepare.timeout_s=null"]


def test_broken_videos_are_skipped_and_named(command, collection, tmp_path):
    kinds = [kind for kind in KINDS if kind != "denied" or os.geteuid() != 0] + ["garbled"]
    words = [*collection(3, kinds), *HERE]
    done = command("prepare", *words, "data.on_missing=skip")
    assert done.code == 0, done.err
    report = report_of()
    bad = {str(tmp_path / "videos" / f"{kind}_{n}.mp4") for n, kind in enumerate(kinds)}
    bad -= {path for path in bad if "av1" in path and path not in report["unreadable"]}
    assert set(report["unreadable"]) == bad
    assert all(report["unreadable"].values())
    num_good = 3 + len(kinds) - len(bad)
    assert report["kept"] == 2 * num_good
    assert report["dropped"] == {"video unreadable": 2 * len(bad)}
    assert report["cache"]["entries"] == num_good  # one for both queries
    assert report["bytes"] == sum(map(len, entries(tmp_path / "cache").values())) > 0
    assert (report["precut"], report["duration_mismatch"]) == (0, 0)
    for path in bad:
        assert path in done.out

    before = entries(tmp_path / "cache")
    done = command("prepare", *words)  # on_missing=error: the same report, then an error
    error = done.error
    assert error.startswith(f"{len(bad)} videos cannot be used (data.on_missing=skip leaves them")
    assert all(path in error for path in bad)
    assert without_seconds(report_of()) == without_seconds(report)
    assert entries(tmp_path / "cache") == before


def without_seconds(report: dict) -> dict:
    return {key: value for key, value in report.items() if key != "seconds"}


def test_missing_videos_are_named(command, collection, tmp_path):
    words = [*collection(2, []), *HERE]
    (tmp_path / "videos" / "good1.mp4").unlink()
    done = command("prepare", *words)
    looked_for = f"{tmp_path / 'videos' / 'good1'}.{{mp4,mkv,webm,avi,mov,m4v}}"
    assert done.error == f"good1: no video file; looked for {looked_for}"
    report = report_of()
    assert report["missing"] == ["good1"]
    assert report["dropped"] == {"video missing": 2}
    assert report["cache"]["entries"] == 1
    assert command("prepare", *words, "data.on_missing=skip").code == 0
    assert without_seconds(report_of()) == without_seconds(report)


def test_check_only_writes_nothing(command, collection, tmp_path):
    words = [*collection(2, ["text"]), *HERE, "prepare.check_only=true", "data.on_missing=skip"]
    assert command("prepare", *words).code == 0
    report = report_of()
    assert (report["kept"], len(report["unreadable"]), report["bytes"]) == (4, 1, 0)
    assert not (tmp_path / "cache").exists()


def test_durations_and_windows_are_compared_with_the_files(command, collection, tmp_path):
    words = [*collection(4, []), *HERE]
    annotations = json.loads((tmp_path / "a.json").read_text())
    annotations["good1"]["duration"] = 4.2  # the file is 3.0 s long
    annotations["good2"]["duration"] = 3.9  # less than 1 s off
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    assert command("prepare", *words).code == 0
    report = report_of()
    assert report["duration_mismatch"] == 1
    name = "with a stated duration that is not the file's"
    assert report["defects"][name] == {"count": 1, "action": "kept", "examples": ["good1:0"]}
    rows = [
        {"video": "good0.mp4", "video_start": 0.0, "video_end": 2.0},
        {"video": "good1.mp4", "video_start": 10.0, "video_end": 13.0},  # already cut
        {"video": "good2.mp4", "video_start": 50.0, "video_end": 99.0},  # not of this file
    ]
    common = {"timestamp": [0.5, 1.0], "sentence": "a", "difficulty": 1.0, "pred": [0, 1]}
    for number, row in enumerate(rows):
        row |= {**common, "duration": row["video_end"] - row["video_start"], "qid": str(number)}
    (tmp_path / "a.json").write_text(json.dumps(rows))
    words = [word.replace("data=charades", "data=timerft") for word in words]
    assert command("prepare", *words, "data.on_missing=skip").code == 0
    report = report_of()
    assert (report["precut"], report["duration_mismatch"], report["kept"]) == (1, 0, 2)
    (problem,) = report["unreadable"].values()
    assert "does not fit this file of 3.00 s" in problem


def test_too_small_disk_is_refused_before_writing(command, collection, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    error = command("prepare", *collection(2, []), *HERE).error
    assert error.startswith(
        f"{tmp_path / 'cache'}: the disk cannot hold the cache: it needs 0.00 G"
    )
    assert not (tmp_path / "cache").exists()
    assert not Path("r.json").exists()


def test_features_are_cached_once(command, collection, tmp_path, tiny_checkpoint):
    words = [*collection(2, ["text"]), "data.on_missing=skip", "prepare.num_workers=0"]
    words += ["data/cache=features", f"model.path={tiny_checkpoint}"]
    words = [w for w in words if not w.startswith("data.cache.folder")]
    words += [f"data.cache.folder={tmp_path / 'cache'}"]
    for there_before in (0, 2):
        done = command("prepare", *words)
        assert done.code == 0, done.err
        report = report_of()
        assert (report["cache"]["kind"], report["cache"]["entries"]) == ("features", 2)
        assert f"{there_before} already present" in done.out
        assert report["bytes"] == sum(map(len, entries(tmp_path / "cache").values()))
    error = command("prepare", *words, "model.path=null").error
    assert "expected its folder as model.path" in error


def test_mixture_of_datasets_is_prepared(command, collection, tmp_path, tiny_world):
    words = collection(2, [])
    done = command(
        "prepare",
        *[
            word
            for word in words
            if not word.startswith(("data=", "data.annotation", "data.video"))
        ],
        "data=mix",
        "~data@data.sets.activitynet",
        "~data.weights.activitynet",
        "+data@data.sets.drawn=charades",
        "+data.weights.drawn=2",
        f"data.sets.drawn.train_file={tiny_world}/train.json",
        f"data.sets.drawn.video_dir={tiny_world}/videos",
        f"data.sets.charades.train_file={tmp_path}/a.json",
        f"data.sets.charades.video_dir={tmp_path}/videos",
        "prepare.split=train",
        *HERE,
    )
    assert done.code == 0, done.err
    report = report_of()
    assert report["kept"] == report["queries"]
    num_drawn = sum(
        len(entry["sentences"])
        for entry in json.loads((tiny_world / "train.json").read_text()).values()
    )
    assert report["queries"] == report["kept"] == 4 + num_drawn  # weights repeat no query
    assert report["videos"] == report["cache"]["entries"] == 2 + 6


def test_mixture_share_is_counted_and_all_videos_are_checked(command, collection, tmp_path):
    collection(4, ["text"])
    words = [
        "data=mix",
        "~data@data.sets.activitynet",
        "~data.weights.activitynet",
        "data.weights.charades=0.1",
        f"data.sets.charades.train_file={tmp_path}/a.json",
        f"data.sets.charades.video_dir={tmp_path}/videos",
        "data/clip=one_token",
        f"data.cache.folder={tmp_path}/cache",
        f"prepare.report={tmp_path}/r.json",
        "prepare.split=train",
        "data.on_missing=skip",
        *HERE,
    ]
    reports = []
    for seed in (0, 1):
        assert command("prepare", *words, f"seed={seed}").code == 0
        reports.append(without_seconds(report_of()))
    report = reports[0]
    assert reports[1] == report  # the seed has no effect
    assert report["queries"] == 10
    assert report["dropped"]["outside this epoch's share"] == 9
    assert report["kept"] + report["dropped"].get("video unreadable", 0) == 1
    assert report["cache"]["entries"] == 4
    assert list(report["unreadable"]) == [str(tmp_path / "videos" / "text_0.mp4")]


@pytest.mark.parametrize("key", ["report", "overview"])
def test_folder_as_output_file_is_refused(command, collection, tmp_path, key):
    folder = tmp_path / "results.png"
    folder.mkdir()
    words = [*collection(1, []), *HERE, f"prepare.{key}={folder}"]
    error = command("prepare", *words).error
    assert error == f"prepare.{key}: expected a file to write, got the folder {folder}"
    assert not (tmp_path / "cache").exists()


def test_invalid_workers_and_timeout_are_refused(command, collection, tmp_path):
    words = collection(1, [])
    error = command("prepare", *words, "prepare.num_workers=-1", "prepare.timeout_s=0").error
    assert "prepare.num_workers: expected a number of processes" in error
    assert "prepare.timeout_s: expected seconds above 0 (null: no limit), got 0" in error
    assert not (tmp_path / "cache").exists()


def test_segments_outside_the_file_are_counted(command, collection, tmp_path):
    words = [*collection(1, []), *HERE]
    entry = {"timestamps": [[0, 1], [100, 110], [1, 50]], "sentences": ["a", "b", "c"]}
    (tmp_path / "a.json").write_text(json.dumps({"good0": entry}))
    for split, kept in (("train", 2), ("test", 3)):
        assert command("prepare", *words, f"data.annotation_split={split}").code == 0
        report = report_of()
        assert (report["queries"], report["kept"]) == (3, kept)
        assert count(report, "starting after the file's end") == 1
        if split == "train":
            assert report["dropped"] == {"starting after the file's end": 1}
            assert report["repaired"] == {"ending after the file's end": 1}


def test_report_and_overview_reach_mlflow(command, collection, tmp_path):
    store = tmp_path / "mlflow.db"
    done = command(
        "prepare",
        *collection(1, []),
        *HERE,
        "logger=[mlflow]",
        f"logger.mlflow.tracking_uri=sqlite:///{store}",
        f"run_dir={tmp_path / 'run'}",
    )
    assert done.code == 0, done.err
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    run_id = json.loads((tmp_path / "run" / "mlflow_run.json").read_text())["run_id"]
    assert client.get_run(run_id).data.metrics["prepare/kept"] == 2
    files = {a.path for a in client.list_artifacts(run_id, "prepare")}
    assert files == {"prepare/r.json", "prepare/overview.png"}


# -- in a separate process ------------------------------------------------------------------------


def start(words: list[str], folder: Path, *more: str) -> subprocess.Popen[str]:
    prefix: list[str] = []
    if os.geteuid() == 0 and shutil.which("setpriv"):  # root ignores file permissions otherwise
        dropped = "-dac_override,-dac_read_search"
        prefix = ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"]
    return subprocess.Popen(
        [
            *prefix,
            *COMMAND,
            *words,
            f"hydra.run.dir={folder}/run",
            *more,
        ],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    return output


def kill_with_entries(process: subprocess.Popen[str], cache: Path, num: int) -> None:
    """Sends SIGKILL as soon as the cache has `num` entries."""
    while process.poll() is None:
        if len(list(cache.rglob("*.safetensors"))) >= num:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_clips", "num_kills", "workers"),
    [(12, 1, 0), pytest.param(60, 10, 2, marks=pytest.mark.timeout(1800))],
)
def test_killed_and_resumed_prepare_equals_uninterrupted(
    collection, tmp_path, num_clips, num_kills, workers
):
    words = [*collection(num_clips, ["text"]), "data.on_missing=skip"]
    words += [f"prepare.num_workers={workers}", "prepare.timeout_s=60"]
    finish(start(words, tmp_path))
    whole = entries(tmp_path / "cache")
    report = report_of(tmp_path / "r.json")
    assert report["cache"]["entries"] == len(whole) == num_clips
    (tmp_path / "r.json").unlink()
    shutil.rmtree(tmp_path / "cache")
    moments = random.Random(0).sample(range(1, num_clips), num_kills)
    for num in sorted(moments):
        kill_with_entries(start(words, tmp_path), tmp_path / "cache", num)
        assert not (tmp_path / "r.json").exists()
    finish(start(words, tmp_path))
    assert entries(tmp_path / "cache") == whole
    assert without_seconds(report_of(tmp_path / "r.json")) == without_seconds(report)


def test_damaged_cache_entry_is_named_and_rebuilt(command, collection, tmp_path):
    words = [*collection(3, []), *HERE]
    assert command("prepare", *words).code == 0
    whole = entries(tmp_path / "cache")
    path = sorted((tmp_path / "cache").rglob("*.safetensors"))[1]
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    done = command("prepare", *words)
    assert report_of()["cache"]["rebuilt"] == [str(path)]
    assert f"{path}: was damaged and has been rebuilt" in done.out
    assert entries(tmp_path / "cache") == whole


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("on_missing", ["skip", "error"])
def test_20_bad_videos_among_500_are_named(collection, tmp_path, on_missing):
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may read everything: needs setpriv, or another user")
    kinds = [KINDS[index % len(KINDS)] for index in range(20)]
    words = collection(480, kinds)
    process = start(words, tmp_path, f"data.on_missing={on_missing}", "prepare.num_workers=2")
    output, _ = process.communicate(timeout=1700)
    assert process.returncode == (0 if on_missing == "skip" else 2), output[-3000:]
    report = report_of(tmp_path / "r.json")
    named = {Path(path).stem for path in report["unreadable"]}
    undecodable = {f"{kind}_{n}" for n, kind in enumerate(kinds) if kind in UNDECODABLE_KINDS}
    av1 = {f"{kind}_{n}" for n, kind in enumerate(kinds) if kind == "av1"}
    assert undecodable <= named <= undecodable | av1
    assert report["cache"]["entries"] == 500 - len(named)
    assert report["kept"] == 2 * (500 - len(named))
    assert report["dropped"] == {"video unreadable": 2 * len(named)}
    if on_missing == "error":
        assert f"{len(named)} videos cannot be used" in output
