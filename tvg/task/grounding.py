"""Temporal video grounding as a chat: what is asked, what is answered, how it is read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from tvg.core.parsing import ParsedAnswer, parse_answer
from tvg.types import GroundingExample, Segment

QUERY_FIELD = "query"


class GroundingTask:
    """Turns an example into chat messages and a completion into a segment.

    Args:
        template: user text with one `{query}` field (other braces doubled, as in `str.format`).
        template_file: a file to read the user text from instead. There, every `{query}`,
            `[EVENT]` or `<EVENT>` is the query and other braces stand for themselves, so that
            the text of an existing release can be used as it is.
        system: text of a system turn, or None for no such turn.
        video_first: the clip stands before the text in the user turn, else behind it.
        answer_format: the target of supervised training, with fields `start_s` and `end_s`; None
            where the answer is no segment.
        think: completions are expected to reason inside `<think>` first.
        lowercase: lower-case the query (as in the training of the Time-R1 release).
        strip_period: drop the query's final full stop.
        parser: reads a completion; called with the text and `anywhere`, as `parse` is.
        prefill: text behind the generation prompt, so that each completion goes on from it: an
            empty think block answers at once. Part of the prompt: not sampled, not scored, not seen
            by rewards. None: nothing.
        frame_times: text of a time, with one field `time_s`, that stands before the frames taken
            then; None: times are told as the model's family does by itself.

    Raises:
        ValueError: a text lacks one of its fields, or has others.
    """

    # Exports that older versions wrote record no parser, prefill or frame times: hence defaults.

    def __init__(
        self,
        *,
        template: str | None,
        template_file: str | None,
        system: str | None,
        video_first: bool,
        answer_format: str | None,
        think: bool,
        lowercase: bool,
        strip_period: bool,
        parser: Callable[..., ParsedAnswer] = parse_answer,
        prefill: str | None = None,
        frame_times: str | None = None,
    ) -> None:
        self.template = _read_template(template, template_file)
        self.system = system
        self.video_first = video_first
        self.answer_format = answer_format
        self.think = think
        self.lowercase = lowercase
        self.strip_period = strip_period
        self.parser = parser
        # A command line cannot hold line breaks: there, they are typed as in YAML's strings.
        self.prefill = None if prefill is None else prefill.replace("\\n", "\n")
        self.frame_times = frame_times
        if answer_format is not None:
            _check_fields("prompt.answer_format", answer_format, {"start_s": 0.0, "end_s": 1.0})
        if frame_times is not None:
            _check_fields("prompt.frame_times", frame_times, {"time_s": 0.0})

    def query_text(self, query: str) -> str:
        """The query as it stands in the prompt."""
        query = query.strip()
        if self.strip_period:
            query = query.removesuffix(".").rstrip()
        return query.lower() if self.lowercase else query

    def messages(self, example: GroundingExample) -> list[dict[str, Any]]:
        """Chat turns in Hugging Face's format, with one video placeholder."""
        text = {"type": "text", "text": self.template.format(query=self.query_text(example.query))}
        video = {"type": "video"}
        content = [video, text] if self.video_first else [text, video]
        user = {"role": "user", "content": content}
        if self.system is None:
            return [user]
        return [{"role": "system", "content": [{"type": "text", "text": self.system}]}, user]

    def target(self, segment: Segment) -> str:
        """The completion that supervised training asks for.

        Raises:
            ValueError: the prompt's answer is no segment.
        """
        if self.answer_format is None:
            raise ValueError("prompt.answer_format: null: this prompt has no supervised target")
        return self.answer_format.format(start_s=segment.start_s, end_s=segment.end_s)

    def parse(self, text: str, *, anywhere: bool = False) -> ParsedAnswer:
        """Reads a completion; text without a readable segment is data, not an error.

        Args:
            text: the completion.
            anywhere: take the last range of the whole text where the answer block holds none: for
                evaluation, as published. A reward is earned inside the block only.
        """
        return self.parser(text, anywhere=anywhere)


def _read_template(template: str | None, template_file: str | None) -> str:
    if (template is None) == (template_file is None):
        raise ValueError(
            "prompt: exactly one of prompt.template and prompt.template_file must be set, "
            f"got template={template!r}, template_file={template_file!r}"
        )
    if template_file is not None:
        template = read_template_file(template_file)
    assert template is not None
    _check_fields("prompt.template", template, {QUERY_FIELD: "a person sits"})
    return template


def read_template_file(template_file: str) -> str:
    """The text of a file as a `template`: query marks as fields, other braces doubled.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        text = Path(template_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompt.template_file: cannot read {template_file}: {error}") from error
    for mark in ("{query}", "[EVENT]", "<EVENT>"):
        text = text.replace(mark, "\0")
    return text.replace("{", "{{").replace("}", "}}").replace("\0", "{query}")


def _check_fields(key: str, template: str, expected: Mapping[str, str | float]) -> None:
    """`expected`: the fields that have to be there, each with a value to try it on."""
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        if found == set(expected):
            template.format(**expected)
    except (ValueError, LookupError) as error:
        raise ValueError(f"{key}: not a format string ({error}): {template!r}") from error
    if found != set(expected):
        raise ValueError(f"{key}: expected the fields {sorted(expected)}, got {sorted(found)}")
