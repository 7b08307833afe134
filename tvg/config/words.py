"""Quotes literal texts on the command line, and explains overrides that Hydra refuses."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from tvg.config.compose import CONF_DIR, keys_of
from tvg.config.errors import did_you_mean
from tvg.config.nodes import parent_of

_NO_SUCH_KEY = re.compile(r"Could not override '([^']+)'")
_NO_SUCH_OPTION = re.compile(r"(?:In '([^']+)': )?Could not (?:load|find) '(.+)/([^/']+)'")


def program() -> str:
    """Returns the command's name: `tvg-train`, also if started by `python -m tvg.cli.train`."""
    module = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")
    package, _, name = str(module).rpartition(".")
    return f"tvg-{name}" if package == "tvg.cli" else Path(sys.argv[0]).name


def with_literal_texts(words: Sequence[str], keys: Collection[str]) -> list[str]:
    """Quotes the values of `keys` for Hydra, which otherwise reads them as YAML.

    Values that are already quoted, `???`, and all values of a sweep (`--multirun`) do not change.
    """
    if {"-m", "--multirun"} & set(words):
        return list(words)
    return [_literal(word, keys) for word in words]


def _literal(word: str, keys: Collection[str]) -> str:
    key, is_override, value = word.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    if not is_override or key not in keys or is_quoted or value == "???":
        return word
    return f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """Quotes a text so that Hydra's grammar and then OmegaConf return it unchanged."""
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no interpolation
    value = re.sub(r'(\\*)"', r'\1\1\\"', value)
    value = re.sub(r"(\\+)\Z", r"\1\1", value)
    return f'"{value}"'


def unreadable_value(error: OverrideParseException) -> str:
    """Returns the message for a value that Hydra cannot parse: how to quote it in a shell."""
    override = str(error.override)
    key, _, value = override.partition("=")
    advice = shlex.quote(f"{key}={quoted(value)}")
    return f"{override}: cannot be parsed; to pass this text unchanged, quote it twice: {advice}"


def refused_overrides(error: HydraException) -> str | None:
    """Returns a message for all overrides that name an unknown key or an unknown option in a list.

    A list of options is a value such as `reward=[iou,format]`. Hydra reports only the first
    problem. This function therefore composes again without the refused override, until no error is
    left.

    Args:
        error: Hydra's error about the first refused override.

    Returns:
        The message; None if the error has another cause.
    """
    command = Path(program()).stem.removeprefix("tvg-")
    rest = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    keys: list[str] = []
    options: dict[str, str] = {}  # group -> message
    known: set[str] = set()
    next_error: HydraException | None = error
    while next_error is not None:
        if (found := _NO_SUCH_KEY.search(str(next_error))) is not None:
            refused, text = found.group(1), None
        elif (option := _unknown_option(next_error)) is not None:
            refused, text = option
        else:
            break
        if refused in keys or refused in options:
            break
        if text is None:
            keys.append(refused)
        else:
            options[refused] = text
        rest = [word for word in rest if word.partition("=")[0].lstrip("+~") != refused]
        next_error = None
        try:
            known = keys_of(command, rest)
        except HydraException as another:
            next_error = another
    lines = [f"{key}: no such config key{_near(key, known)}" for key in keys]
    if keys:
        lines.append("--help lists the config; +key=value adds a key to it")
    return "\n".join([*lines, *options.values()]) or None


def _unknown_option(error: HydraException) -> tuple[str, str] | None:
    """Returns the group and the message for an unknown option."""
    found = _NO_SUCH_OPTION.search(str(error))
    if found is None or not isinstance(error, MissingConfigException):
        return None
    file, group, option = found.groups()
    options = sorted(o for o in error.options or options_of(group) if not o.startswith("_"))
    if not options:
        return group, f"{group}: no such group of options"
    if option in options:
        return None
    text = f"{group}: no option {option!r}{did_you_mean(option, options)}"
    if file is not None and "/" in file:  # an experiment, not the command's main config
        text += f", in {file}"
    if not _config_dirs(sys.argv[1:]):
        own = f"FOLDER/{group}/{option}.yaml"
        text += f"; for an option of your own in {own}, add --config-dir=FOLDER"
    listed = "\n\t".join(options)
    return group, f"{text}\n\nAvailable options in '{group}':\n\t{listed}"


def options_of(group: str) -> list[str]:
    """Returns the options of a group; files that begin with _ are parts of options."""
    folders = [CONF_DIR, *_config_dirs(sys.argv[1:])]
    files = [file for folder in folders for file in (folder / group).glob("*.yaml")]
    return sorted({file.stem for file in files if not file.name.startswith("_")})


def _config_dirs(words: Sequence[str]) -> list[Path]:
    """Returns the folders added by --config-dir."""
    given = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    flags = ("--config-dir", "-cd")
    pairs = itertools.pairwise(words)
    return [Path(path) for path in (*given, *(value for flag, value in pairs if flag in flags))]


def _near(key: str, known: set[str]) -> str:
    """Suggests similar keys of the same section or, if there are none, of the complete config."""
    parent, _, leaf = key.rpartition(".")
    beside = [path.rpartition(".")[2] for path in known if parent_of(path) == parent]
    prefix = f"{parent}." if parent else ""
    return did_you_mean(leaf, beside, prefix=prefix) or did_you_mean(key, known)
