"""Tests of a checkpoint's record `tvg.yaml`: plain values, strict checks, older versions."""

from __future__ import annotations

import functools
import inspect
import os
from pathlib import Path

import pytest
import yaml

from tvg.config import build, compose
from tvg.config.record_file import read_record
from tvg.config.record_options import (
    LOADER_OPTIONS,
    PROMPT_OPTIONS,
    SAMPLING_OPTIONS,
)
from tvg.data.video.clip import ClipLoader
from tvg.data.video.pyav_decoder import PyAVDecoder
from tvg.data.video.sampling import FrameSampling
from tvg.recorded import record_text, recorded_loader, recorded_prompt
from tvg.task.grounding import GroundingTask

OLD_RECORD = """\
prompt:
  _target_: tvg.task.grounding.GroundingTask
  template: 'Find: {query}'
  template_file: null
  system: Be brief.
  video_first: false
  answer_format: <answer>{start_s:.1f} to {end_s:.1f}</answer>
  think: false
  lowercase: true
  strip_period: false
  parser:
    _target_: tvg.core.parsing_time_r1.parse_answer
    _partial_: true
  prefill: null
  frame_times: null
data/loader:
  _target_: tvg.data.clip.ClipLoader
  _partial_: true
  sampling:
    _target_: tvg.data.sampling.FrameSampling
    fps: 3.0
    min_frames: 4
    max_frames: 96
    frame_factor: 2
    min_pixels: 784
    max_pixels: 1568
    total_pixels: 2809856
    resize_factor: 28
  timeout_s: 7.5
"""


def folder_with(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tvg.yaml").write_text(text)
    return folder


@functools.cache
def _short_record() -> str:
    return record_text(compose("train", ["prompt=short"]).cfg)


def new_record() -> dict:
    return yaml.safe_load(_short_record())


def read(folder: Path) -> tuple[GroundingTask, ClipLoader]:
    """Returns the task and loader that prompt=recorded and data/clip=recorded build."""
    settings = dict.fromkeys(
        (
            *("system", "video_first", "lowercase", "strip_period"),
            *("parser", "prefill", "frame_times"),
            *("query_blanks", "rate_any_numbers", "strict_answer"),
        ),
        "recorded",
    )
    task = recorded_prompt(folder=str(folder), fallback="think", **settings)
    loader = recorded_loader(folder=str(folder), fallback="qwen", timeout_s="recorded")
    return task, loader(decoder=PyAVDecoder(num_threads=1))


def test_record_contains_plain_values_and_no_targets():
    record = new_record()
    assert record["prompt"]["parser"] == "default"
    assert record["prompt"]["template"] == "{query}"
    assert record["data/clip"]["sampling"]["max_pixels"] == 784
    assert "_target_" not in str(record)
    assert "_partial_" not in str(record)


def test_record_of_an_older_version_still_loads(tmp_path):
    task, loader = read(folder_with(tmp_path / "a", OLD_RECORD))
    assert (task.template, task.system, task.video_first) == ("Find: {query}", "Be brief.", False)
    assert (task.think, task.lowercase, task.strip_period) == (False, True, False)
    assert task.parse("<answer>1:05 to 1:11</answer>").segment == (5.0, 1.0)  # as parsed by time_r1
    assert loader.sampling == FrameSampling(fps=3.0, max_frames=96, min_pixels=784, max_pixels=1568)
    assert loader.timeout_s == 7.5


def test_run_from_an_older_record_writes_a_plain_one(tmp_path):
    folder = folder_with(tmp_path / "a", OLD_RECORD)
    words = ["prompt=recorded", "data/clip=recorded", f"model.path={folder}"]
    text = record_text(compose("train", words).cfg)
    assert "_target_" not in text
    task, loader = read(folder_with(tmp_path / "b", text))
    assert task.template == "Find: {query}"
    assert loader.timeout_s == 7.5
    assert yaml.safe_load(text)["prompt"]["parser"] == "time_r1"


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${eval:1+1}", "${model.path}", "${}"])
def test_interpolations_in_a_record_are_text(tmp_path, text):
    record = new_record()
    record["prompt"]["system"] = text
    task, _ = read(folder_with(tmp_path / "a", yaml.safe_dump(record)))
    assert task.system == text


def test_a_prompt_with_interpolation_marks_is_recorded_as_text(tmp_path):
    record = record_text(compose("train", [r"prompt.system='costs \${price}'"]).cfg)
    task, _ = read(folder_with(tmp_path / "a", record))
    assert task.system == "costs ${price}"


def test_recorded_time_limit_can_be_overridden(tmp_path):
    folder = folder_with(tmp_path / "a", yaml.safe_dump(new_record()))
    words = [f"model.path={folder}", "video=a.mp4", "query=a", "clip.timeout_s=3"]
    loader = build(compose("predict", words).cfg.clip)(decoder=PyAVDecoder(num_threads=1))
    assert loader.timeout_s == 3


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("prompt.think", "yes", "expected true or false, got 'yes'"),
        ("prompt.video_first", 1, "expected true or false, got 1"),
        ("prompt.template", None, "expected a text, got None"),
        ("prompt.template", "{query:>9999999999}", "expected a format such as"),
        ("prompt.template", "{query:{query}}", "expected a format such as"),
        ("prompt.template", "{query.__class__}", "expected the fields"),
        ("prompt.answer_format", "{start_s:.999999999f}{end_s}", "expected a format such as"),
        ("prompt.template_file", "/etc/passwd", "a record names no files"),
        ("prompt.parser", "os.system", "expected one of default, time_r1"),
        ("prompt.sistem", "a", "no such option; did you mean 'system'"),
        ("prompt", [1], "expected a mapping, got [1]"),
        ("data/clip.timeout_s", -1, "expected a number above 0, or null, got -1"),
        ("data/clip.timeout_s", float("inf"), "expected a finite number"),
        ("data/clip.decoder", "a", "no such option"),
        ("data/clip.sampling", None, "expected a mapping, got None"),
        ("data/clip.sampling.fps", True, "expected a number above 0, got True"),
        ("data/clip.sampling.max_frames", 10**13, "expected a whole number above 0"),
        ("data/clip.sampling.min_frames", 1000, "min_frames must not exceed max_frames"),
        ("reward", {"a": 1}, "no section 'reward'"),
    ],
)
def test_invalid_value_in_a_record_is_refused(tmp_path, path, value, message):
    record = new_record()
    *parents, leaf = path.split(".")
    node = record
    for name in parents:
        node = node[name]
    node[leaf] = value
    folder = folder_with(tmp_path / "a", yaml.safe_dump(record))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(folder)
    assert str(caught.value).startswith(f"{folder}/tvg.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x]\nb: *a\n", "no anchors or aliases"),
        ("a: &a x\n", "no anchors or aliases"),
        ("a: !!python/object/apply:os.system ['true']\n", "no tags"),
        ("a: !!binary aGk=\n", "no tags"),
        ("[" * 50, "levels deep"),
        ("a: [" + "1," * 2000 + "1]\n", "at most 1000 values"),
        ("a: " + "x" * 300_000, "has 300,003 bytes"),
        ("a: 2024-01-01\n", "expected a plain value"),
        ("a: .inf\n", "expected a finite number"),
        ("a: " + "9" * 5000 + "\n", "cannot be read as a record"),
        ("a: [\n", "cannot be read as a record"),
        ("a: \x00\n", "cannot be read as a record"),
        ("- a\n", "expected a mapping, got list"),
        ("1: a\n", "expected names as keys"),
        ("", "expected a mapping, got NoneType"),
    ],
)
def test_invalid_record_file_gives_a_one_line_error(tmp_path, text, message):
    path = folder_with(tmp_path / "a", text) / "tvg.yaml"
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_record(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_custom_parser_is_recorded_by_name_and_not_loaded(tmp_path):
    words = ["prompt.parser={_target_:os.path.join,_partial_:true}"]
    record = record_text(compose("train", words).cfg)
    assert yaml.safe_load(record)["prompt"]["parser"] == "own:os.path.join"
    folder = folder_with(tmp_path / "a", record)
    with pytest.raises(ValueError, match=r"trained with a custom parser, 'os\.path"):
        read(folder)
    asked = [f"model.path={folder}", *words]
    task = build(compose("evaluate", asked).cfg.prompt)
    assert task.parser.func is os.path.join  # allowed: the user named it on the command line


def test_every_option_is_recorded_or_deliberately_left_out():
    arguments = set(inspect.signature(GroundingTask).parameters)
    assert arguments == set(PROMPT_OPTIONS) | {"template_file"}  # recorded as `template`
    assert set(inspect.signature(FrameSampling).parameters) == set(SAMPLING_OPTIONS)
    arguments = set(inspect.signature(ClipLoader).parameters)
    assert arguments - set(LOADER_OPTIONS) <= {"sampling", "decoder"}
