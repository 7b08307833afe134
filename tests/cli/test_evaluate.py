"""Tests that tvg-evaluate counts the queries of missing or broken videos."""

import json
import shutil
from pathlib import Path


def test_queries_without_usable_video_are_counted(command, tiny_world, tiny_checkpoint, tmp_path):
    entries = json.loads((tiny_world / "test.json").read_text())
    num = {video: len(entry["sentences"]) for video, entry in entries.items()}
    missing, broken, *_ = num
    videos = Path(shutil.copytree(tiny_world / "videos", tmp_path / "videos"))
    (videos / f"{missing}.mp4").unlink()
    (videos / f"{broken}.mp4").write_text("no video")
    done = command(
        "evaluate",
        "data=custom",
        "data/cache=none",
        "data.num_workers=0",
        "data.on_missing=skip",
        f"data.annotation_file={tiny_world / 'test.json'}",
        f"data.video_dir={videos}",
        f"model.path={tiny_checkpoint}",
        "rollout.max_new_tokens=2",
        "logger=[]",
        f"run_dir={tmp_path / 'run'}",
    )
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    keys = ("queries", "missing", "unreadable", "left_out", "beyond_limit", "n")
    everything, gone = sum(num.values()), num[missing] + num[broken]
    assert tuple(metrics[key] for key in keys) == (
        everything, num[missing], num[broken], gone, 0, everything - gone
    )  # fmt: skip
