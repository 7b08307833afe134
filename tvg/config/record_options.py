"""Checks the options in a checkpoint's record: their names and the kinds of their values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from tvg.config.errors import ConfigError, did_you_mean

TEXT, TEXT_OR_NULL, FLAG, COUNT, NUMBER, NUMBER_OR_NULL = (
    "a text",
    "a text or null",
    "true or false",
    "a whole number above 0",
    "a number above 0",
    "a number above 0, or null",
)
LARGEST = 10**12  # limit of every number

PROMPT_OPTIONS = {
    "template": TEXT,
    "system": TEXT_OR_NULL,
    "video_first": FLAG,
    "answer_format": TEXT_OR_NULL,
    "think": FLAG,
    "lowercase": FLAG,
    "strip_period": FLAG,
    "query_blanks": TEXT,
    "parser": TEXT,
    "rate_any_numbers": FLAG,
    "strict_answer": FLAG,
    "prefill": TEXT_OR_NULL,
    "frame_times": TEXT_OR_NULL,
}
LATER_PROMPT_OPTIONS = {  # records of older versions lack them
    *("parser", "prefill", "frame_times"),
    *("query_blanks", "rate_any_numbers", "strict_answer"),
}
SAMPLING_OPTIONS = {
    "fps": NUMBER,
    "min_frames": COUNT,
    "max_frames": COUNT,
    "frame_factor": COUNT,
    "min_pixels": COUNT,
    "max_pixels": COUNT,
    "total_pixels": COUNT,
    "resize_factor": COUNT,
}
LOADER_OPTIONS = {"timeout_s": NUMBER_OR_NULL}  # in addition to `sampling`

PARSERS = {  # name in a record -> function
    "default": "tvg.core.parsing.parse_answer",
    "time_r1": "tvg.core.parsing_time_r1.parse_answer",
}
# Width and precision of a format have at most two digits, as in "{start_s:.1f}". Larger widths
# would fill the memory.
_FORMAT_SPEC = re.compile(r"0?[0-9]{0,2}(\.[0-9]{1,2})?[a-zA-Z%]?")
_FORMATS = ("template", "answer_format", "frame_times")


def check_options(
    values: Mapping[str, Any], options: Mapping[str, str], where: str, *, optional: set[str]
) -> None:
    """Checks the values of a section against the known options.

    Args:
        values: values of one section of a record.
        options: name -> one of the kinds above.
        where: file and section, for error messages.
        optional: names that may be absent.

    Raises:
        ConfigError: an option is unknown or missing, or a value is of another kind.
    """
    for name, value in values.items():
        if name not in options:
            hint = did_you_mean(name, options) or f"; known are {', '.join(options)}"
            raise ConfigError(f"{where}.{name}: a record has no such option{hint}")
        if not _is_kind(value, options[name]):
            raise ConfigError(f"{where}.{name}: expected {options[name]}, got {value!r}")
        if name in _FORMATS and value is not None:
            _check_format(f"{where}.{name}", value)
    if missing := [n for n in options if n not in values and n not in optional]:
        raise ConfigError(f"{where}.{missing[0]}: this option is missing")


def _is_kind(value: Any, kind: str) -> bool:
    if value is None:
        return kind in (TEXT_OR_NULL, NUMBER_OR_NULL)
    if kind in (TEXT, TEXT_OR_NULL):
        return isinstance(value, str)
    if kind == FLAG:
        return isinstance(value, bool)
    is_number = isinstance(value, int if kind == COUNT else int | float)
    return is_number and not isinstance(value, bool) and 0 < value <= LARGEST


def _check_format(where: str, text: str) -> None:
    try:
        specs = [spec for _, name, spec, _ in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{where}: not a format string ({error}): {text!r}") from error
    for spec in specs:
        if _FORMAT_SPEC.fullmatch(spec or "") is None:
            raise ConfigError(f"{where}: expected a format such as '.1f', got {spec!r}")
