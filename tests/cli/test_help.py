"""Tests that --help lists the config groups of a command, each with a description."""

from __future__ import annotations

import pytest

from tvg.config import CONF_DIR
from tvg.config.help import DESCRIPTIONS

# Groups that users do not select directly: `compat` selects the first two, `data=mix` the last.
INDIRECT = {"compat/evaluation", "compat/training", "data/role"}


def groups_of(text: str) -> dict[str, list[str]]:
    """Returns group -> its options, followed by its description."""
    part = text.partition("with group=option ==")[2].partition("== Config")[0]
    lines = [line for line in part.splitlines() if line.strip()]
    assert len(lines) % 2 == 0
    found = {}
    for options, about in zip(lines[::2], lines[1::2], strict=True):
        key, _, names = options.partition(": ")
        assert about.startswith("    ")
        found[key] = [*names.split(", "), about.strip()]
    return found


def test_help_of_train_lists_all_groups(command):
    groups = groups_of(command("train", "--help").out)
    assert set(groups) == set(DESCRIPTIONS)
    assert groups["strategy"] == [
        "auto",
        "ddp",
        "deepspeed_zero1",
        "deepspeed_zero2",
        "deepspeed_zero2_offload",
        "deepspeed_zero3",
        "deepspeed_zero3_offload",
        "fsdp2",
        DESCRIPTIONS["strategy"],
    ]
    assert not [o for options in groups.values() for o in options if o.startswith("_")]


@pytest.mark.parametrize(
    ("name", "shown", "hidden"),
    [
        ("evaluate", {"data/clip", "logger", "experiment"}, {"objective", "reward", "trainer"}),
        ("predict", {"data/clip@clip", "data/decoder@decoder", "rollout"}, {"data", "logger"}),
        ("prepare", {"data", "data/cache", "logger"}, {"prompt", "rollout", "callbacks"}),
    ],
)
def test_help_of_other_commands_lists_their_groups_only(command, name, shown, hidden):
    groups = groups_of(command(name, "--help").out)
    assert shown <= set(groups)
    assert not hidden & set(groups)


def test_every_shipped_group_has_a_description():
    folders = {path.parent.relative_to(CONF_DIR).as_posix() for path in CONF_DIR.rglob("*/*.yaml")}
    shipped = {folder for folder in folders if not folder.startswith("hydra")}
    assert shipped == set(DESCRIPTIONS) | INDIRECT
