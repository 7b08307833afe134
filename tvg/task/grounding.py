"""Temporal video grounding: prompts, target answers, parsing and scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from tvg.core.answer_format import answer_pattern, is_exact
from tvg.core.interval import exact_iou, segment_iou
from tvg.core.metrics import grounding_metrics
from tvg.core.parsing import THINK_CLOSE, ParsedAnswer, parse_answer
from tvg.core.parsing_time_r1 import first_two_numbers
from tvg.task.predictions import Prediction, known_scores
from tvg.task.template import check_fields, read_template
from tvg.types import GroundingExample, Segment

QueryBlanks = Literal["strip", "before_period", "keep"]


class GroundingTask:
    """Asks for the segment that a sentence describes; implements `tvg.task.protocol.Task`.

    Args:
        template: user text with one `{query}` field (other braces doubled, as in `str.format`).
        template_file: file to read the user text from instead. The query replaces every `{query}`,
            `[EVENT]` and `<EVENT>` in the text, or a single `{}` if the text has none of these.
            Other braces are literal, so that the text of an existing release needs no change.
        system: text of the system turn; None: no system turn.
        video_first: put the clip before the text in the user turn; False: after the text.
        answer_format: the target of supervised training, with fields `start_s` and `end_s`; None
            if the answer is not a segment.
        think: completions are expected to reason inside `<think>` first.
        lowercase: lower-case the query (as in the training of the Time-R1 release).
        strip_period: drop the query's final full stop.
        query_blanks: "strip" removes whitespace around the query. "before_period" does so, too, but
            keeps whitespace before a dropped full stop, as in Time-R1's training. "keep" keeps all
            whitespace, as in Time-R1's evaluation.
        rate_any_numbers: rate an answer without a range by the first two numbers of its text, as
            Time-R1's difficulty scoring does; see `rated_segment`.
        strict_answer: True: a segment counts only if the completion has exactly the requested
            format (`has_exact_format`). False: any segment that the parser finds counts, even with
            trailing text.
        parser: parses a completion; called with the text and `anywhere`, like `parse`.
        prefill: text after the generation prompt that every completion continues. An empty think
            block makes the model answer immediately. The prefill is part of the prompt: it is
            neither sampled nor scored, and rewards do not see it. None: no prefill.
        frame_times: format of a time, with one field `time_s`, written before the frames of that
            time. None: the model's family determines how the prompt states times.

    Raises:
        ValueError: a text lacks a field or has an unknown field, or an argument is invalid.
    """

    main_metric = "miou"
    validation_metrics = ("miou", "r1_", "parse_rate", "exact_format")

    # The last arguments have defaults, because the records of older exports lack them.

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
        query_blanks: QueryBlanks = "strip",
        rate_any_numbers: bool = False,
        strict_answer: bool = False,
    ) -> None:
        if query_blanks not in get_args(QueryBlanks):
            raise ValueError(
                f"prompt.query_blanks: expected one of {', '.join(get_args(QueryBlanks))}, "
                f"got {query_blanks!r}"
            )
        self.template = read_template(template, template_file)
        self.system = system
        self.video_first = video_first
        self.answer_format = answer_format
        self.think = think
        self.lowercase = lowercase
        self.strip_period = strip_period
        self.parser = _undeferred(parser)
        # On a command line, users type a line break as `\n`, as in YAML strings.
        self.prefill = None if prefill is None else prefill.replace("\\n", "\n")
        self.frame_times = frame_times
        self.query_blanks = query_blanks
        self.rate_any_numbers = rate_any_numbers
        self.strict_answer = strict_answer
        if answer_format is not None:
            check_fields("prompt.answer_format", answer_format, {"start_s": 0.0, "end_s": 1.0})
        if frame_times is not None:
            check_fields("prompt.frame_times", frame_times, {"time_s": 0.0})
        self._exact_answer = answer_pattern(answer_format)
        is_thought_written = self.prefill is not None and THINK_CLOSE in self.prefill
        self._thinks = think and not is_thought_written

    def query_text(self, query: str) -> str:
        """Returns a query as the prompt shows it."""
        if self.query_blanks != "keep":
            query = query.strip()
        if self.strip_period:
            query = query.removesuffix(".")
            query = query.rstrip() if self.query_blanks == "strip" else query
        return query.lower() if self.lowercase else query

    def asked_query(self, example: GroundingExample) -> str:
        """Returns an example's query as the prompt shows it."""
        return self.query_text(example.query if example.raw_query is None else example.raw_query)

    def messages(self, example: GroundingExample) -> list[dict[str, Any]]:
        """Returns chat turns in Hugging Face's format, with one video placeholder."""
        text = {"type": "text", "text": self.template.format(query=self.asked_query(example))}
        video = {"type": "video"}
        content = [video, text] if self.video_first else [text, video]
        user = {"role": "user", "content": content}
        if self.system is None:
            return [user]
        return [{"role": "system", "content": [{"type": "text", "text": self.system}]}, user]

    def target(self, example: GroundingExample) -> str:
        """Returns the target completion, with the example's true segment.

        If the example has a coarse `hint`, the hint is used instead.

        Raises:
            ValueError: the example has neither, or the prompt's answer is not a segment.
        """
        segment = example.hint or example.segment
        if segment is None:
            raise ValueError(f"{example.qid}: supervised training needs a segment")
        if self.answer_format is None:
            raise ValueError("prompt.answer_format: null: this prompt has no supervised target")
        return self.answer_format.format(start_s=segment.start_s, end_s=segment.end_s)

    def typical_target(self) -> str | None:
        """Returns the target for a segment from 0 to 1 s; None if the answer is not a segment."""
        return self.answer_format and self.answer_format.format(start_s=0.0, end_s=1.0)

    def parse(self, text: str, *, anywhere: bool = False) -> ParsedAnswer:
        """Parses a completion; text without a readable segment is not an error.

        Args:
            text: the completion.
            anywhere: if the answer block contains no range, use the last range of the complete
                text, as in the published evaluation. Rewards use only the block.
        """
        parsed = self.parser(text, anywhere=anywhere)
        if self.strict_answer and parsed.segment is not None and not self.has_exact_format(text):
            return replace(parsed, segment=None)
        return parsed

    def has_exact_format(self, text: str) -> bool:
        """Returns whether a completion has exactly the requested format, including decimals."""
        return is_exact(text, self._exact_answer, think=self._thinks)

    def is_parsed(self, answer: ParsedAnswer) -> bool:
        """Returns whether there is a segment, or any answer if the prompt asks for no segment."""
        return (answer.answer if self.answer_format is None else answer.segment) is not None

    def rated_segment(self, text: str) -> Segment | None:
        """Returns the segment of a completion that is used to rate the query's difficulty."""
        segment = self.parse(text, anywhere=True).segment
        if segment is None and self.rate_any_numbers:
            return first_two_numbers(text)
        return segment

    # -- scores ---------------------------------------------------------------------------------

    def predict(self, example: GroundingExample, text: str, *, duration_s: float) -> Prediction:
        """Scores a completion's segment anywhere in the text; without a segment, the score is 0."""
        answer = self.parse(text, anywhere=True)
        segment = answer.segment
        return Prediction(
            qid=example.qid,
            video=example.video,
            query=example.query,
            segment=segment,
            truth=example.segment,
            score=None if example.segment is None else segment_iou(segment, example.segment),
            text=text,
            duration_s=duration_s,
            is_parsed=self.is_parsed(answer),
            is_exact=self.has_exact_format(text),
        )

    def rate(self, example: GroundingExample, prediction: Prediction) -> GroundingExample:
        """Adds a prediction and its difficulty, 100 * IoU, to an example.

        A completion without a segment is read again by `rated_segment`.

        Raises:
            ValueError: the true segment is unknown.
        """
        known_scores([prediction])
        segment = prediction.segment
        if segment is None:
            segment = self.rated_segment(prediction.text)
        difficulty = 100 * segment_iou(segment, prediction.truth)
        return replace(example, difficulty=difficulty, prediction=segment)

    def metrics(
        self, predictions: Sequence[Prediction], *, seed: int = 0, strict: bool = False
    ) -> dict[str, Any]:
        """Returns recalls, mIoU, parse rate and exact-format rate; see `grounding_metrics`.

        Args:
            predictions: predictions whose true segments are known.
            seed: seed of the bootstrap.
            strict: recalls count IoU > m instead of IoU >= m.
        """
        return segment_metrics(predictions, seed=seed, strict=strict)

    def columns(self, example: GroundingExample, answer: ParsedAnswer) -> dict[str, Any]:
        """Returns the true and the predicted segment as [start_s, end_s]."""
        return {
            "truth": list(example.segment) if example.segment else None,
            "segment": list(answer.segment) if answer.segment else None,
        }


def segment_metrics(
    predictions: Sequence[Prediction], *, seed: int = 0, strict: bool = False
) -> dict[str, Any]:
    """Scores predicted segments; see `GroundingTask.metrics`.

    Raises:
        ValueError: the true segment of a query is unknown.
    """
    known_scores(predictions)
    flags = [prediction.is_exact for prediction in predictions]
    known = [flag for flag in flags if flag is not None]
    return grounding_metrics(
        [exact_iou(prediction.segment, prediction.truth) for prediction in predictions],
        [prediction.is_parsed for prediction in predictions],
        exact_format=known if len(known) == len(flags) else None,
        seed=seed,
        strict=strict,
    )


def _undeferred(parser: Callable[..., ParsedAnswer]) -> Callable[..., ParsedAnswer]:
    """Converts Hydra's `_partial_`, which checks its target in every call, to a plain partial."""
    if not isinstance(parser, functools.partial):
        return parser
    return functools.partial(parser.func, *parser.args, **parser.keywords)
