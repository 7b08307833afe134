"""Tests of prompt configs: the shipped prompts, and the prompts recorded in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tvg.config import CONF_DIR, build, compose
from tvg.core.parsing_time_r1 import parse_answer as time_r1_parser
from tvg.recorded import record_text, recorded_prompt
from tvg.task.grounding import GroundingTask


def exported(folder: Path, *words: str) -> Path:
    folder.mkdir()
    (folder / "tvg.yaml").write_text(record_text(compose("train", list(words)).cfg))
    return folder


def evaluated_prompt(folder: Path, *words: str) -> Any:
    return build(compose("evaluate", [f"model.path={folder}", *words]).cfg.prompt)


def test_recorded_prompt_can_be_overridden(tmp_path):
    folder = exported(tmp_path / "a", "prompt=timelens", "prompt.system=Be brief.")
    unchanged = evaluated_prompt(folder)
    assert unchanged.frame_times == "{time_s:.1f}s"
    assert unchanged.system == "Be brief."
    assert unchanged.prefill is None
    changed = evaluated_prompt(
        folder, "prompt.prefill='<think></think>'", "prompt.system=null", "prompt.frame_times=null"
    )
    assert changed.prefill == "<think></think>"
    assert changed.system is None
    assert changed.frame_times is None
    assert changed.template == unchanged.template


def test_compat_evaluates_recorded_prompt_as_release(tmp_path):
    folder = exported(tmp_path / "a", "prompt=answer_only", "compat=time_r1")
    task = evaluated_prompt(folder, "compat=time_r1")
    assert (task.video_first, task.lowercase, task.strip_period) == (True, False, False)
    assert task.system == "You are a helpful assistant."
    text = "<answer>5.0s to 11.6s</answer>"
    assert task.parse(text, anywhere=True) == time_r1_parser(text, anywhere=True)
    assert evaluated_prompt(folder, "prompt=think").parse(text).segment == (5.0, 11.6)
    assert evaluated_prompt(folder).parse(text).segment is None  # recorded parser


def test_changed_recorded_prompt_is_recorded_with_changes(tmp_path):
    folder = exported(tmp_path / "a", "prompt=short_think")
    words = ["prompt=recorded", f"model.path={folder}", "prompt.prefill=Go:"]
    task = evaluated_prompt(exported(tmp_path / "b", *words))
    assert (task.prefill, task.template, task.think) == ("Go:", "{query}", True)


def test_record_without_newer_keys_still_loads(tmp_path):
    folder = exported(tmp_path / "a", "prompt=think")
    record = OmegaConf.load(folder / "tvg.yaml")
    for key in ("parser", "prefill", "frame_times", "query_blanks", "rate_any_numbers"):
        del record.prompt[key]
    OmegaConf.save(record, folder / "tvg.yaml")
    task = evaluated_prompt(folder)
    assert task.parse("<answer>5.0s to 11.6s</answer>").segment == (5.0, 11.6)
    assert (task.prefill, task.frame_times) == (None, None)


def test_unknown_fallback_prompt_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    settings = dict.fromkeys(
        (
            *("system", "video_first", "lowercase", "strip_period"),
            *("parser", "prefill", "frame_times", "query_blanks", "rate_any_numbers"),
            "strict_answer",
        ),
        "recorded",
    )
    with pytest.raises(ValueError, match=r"^prompt: no option 'nope' in "):
        recorded_prompt(folder=str(tmp_path), fallback="nope", **settings)


@pytest.mark.parametrize(
    "name", sorted(p.stem for p in (CONF_DIR / "prompt").glob("[!_]*.yaml") if p.stem != "recorded")
)
def test_target_of_shipped_prompt_can_be_parsed(name):
    task = build(compose("train", [f"prompt={name}"]).cfg.prompt)
    if not isinstance(task, GroundingTask):
        return
    assert "<answer>" in task.template or task.template == "{query}"
    if task.answer_format is not None:
        target = task.answer_format.format(start_s=1.0, end_s=2.5)
        assert ("<think>" in target) == task.think  # as the format reward expects
        assert task.parse(target).segment is not None
    if task.prefill is not None:
        assert task.prefill.endswith("\n")  # so that "<" begins a new token
        assert not task.think
