"""Reads prompt templates from the config or from the file of a release."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter

QUERY_FIELD = "query"
# Marks of the query in a template file. A file without them may use {}.
QUERY_MARKS = ("{query}", "[EVENT]", "<EVENT>")
_LIKE_A_FIELD = re.compile(r"\{[A-Za-z_]\w*\}")
log = logging.getLogger(__name__)


def read_template(template: str | None, template_file: str | None) -> str:
    """Returns the prompt's text, with one field `{query}`, from one of two config keys.

    Raises:
        ValueError: both keys or none are set, or the text has other fields.
    """
    if (template is None) == (template_file is None):
        raise ValueError(
            "prompt: exactly one of prompt.template and prompt.template_file must be set, "
            f"got template={template!r}, template_file={template_file!r}"
        )
    if template_file is not None:
        template = read_template_file(template_file)
    assert template is not None
    check_fields("prompt.template", template, {QUERY_FIELD: "a person sits"})
    return template


def read_template_file(template_file: str) -> str:
    """Converts a file to a `template`: query marks become fields, other braces are doubled.

    Raises:
        ValueError: the file cannot be read, does not mark the query, or marks it by several `{}`.
    """
    try:
        text = Path(template_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompt.template_file: cannot read {template_file}: {error}") from error
    marks = [mark for mark in QUERY_MARKS if mark in text]
    if not marks and text.count("{}") != 1:
        raise ValueError(
            f"prompt.template_file: {template_file} contains {{}} {text.count('{}')} times: "
            "expected it once, or {query} at the place of the query"
        )
    for mark in marks or ["{}"]:
        text = text.replace(mark, "\0")
    others = sorted(set(_LIKE_A_FIELD.findall(text)))
    if others:
        log.warning(
            "prompt.template_file: %s contains %s, which stays in the prompt as text: only the "
            "query is filled in",
            template_file,
            ", ".join(others),
        )
    return text.replace("{", "{{").replace("}", "}}").replace("\0", "{query}")


def check_fields(key: str, template: str, expected: Mapping[str, str | float]) -> None:
    """Raises a ValueError unless the fields are those of `expected` (name -> value to try)."""
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        if found == set(expected):
            template.format(**expected)
    except (ValueError, LookupError) as error:
        raise ValueError(f"{key}: not a format string ({error}): {template!r}") from error
    if found != set(expected):
        raise ValueError(f"{key}: expected the fields {sorted(expected)}, got {sorted(found)}")
