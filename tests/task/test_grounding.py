"""Tests of the grounding task: prompt templates, messages, targets and answer parsing."""

import re
from dataclasses import replace

import pytest
from helpers.tiny_policy import make_task

from tvg.core.parsing import ParsedAnswer
from tvg.types import GroundingExample, Segment


def example(query: str) -> GroundingExample:
    return GroundingExample(
        qid="v:0", video="v", video_path=None, query=query, segment=None, duration_s=None
    )


def labelled(segment: Segment) -> GroundingExample:
    return replace(example("a"), segment=segment)


def user_text(task, query: str = "A person sits.") -> str:
    (content,) = [m["content"] for m in task.messages(example(query)) if m["role"] == "user"]
    (text,) = [part["text"] for part in content if part["type"] == "text"]
    return text


def test_query_is_inserted_into_the_template():
    task = make_task(template='Find "{query}" as {{"s": 1}}: {query}', lowercase=False)
    assert user_text(task) == 'Find "A person sits" as {"s": 1}: A person sits'


def test_braces_in_a_query_are_kept():
    assert user_text(make_task(), "put {0} and {x} down") == "put {0} and {x} down"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Find {query}.", "Find a cat."),
        ("Find [EVENT]; <EVENT> it is", "Find a cat; a cat it is"),
        ('{"a": {query}, "b": {}}\n}{', '{"a": a cat, "b": {}}\n}{'),
        ("{{query}} in {curly}", "{a cat} in {curly}"),
        ("Ereignis „[EVENT]“ – wann?", "Ereignis „a cat“ – wann?"),
    ],
)
def test_only_the_query_is_replaced_in_a_template_file(tmp_path, text, expected):
    path = tmp_path / "prompt.txt"
    path.write_text(text, encoding="utf-8")
    assert user_text(make_task(template=None, template_file=str(path)), "a cat") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "no field"}, r"prompt.template: expected the fields \['query'\], got \[\]"),
        ({"template": "{query} {other}"}, r"prompt.template: .*got \['other', 'query'\]"),
        ({"template": "{query.upper}"}, r"prompt.template: .*got \['query.upper'\]"),
        ({"template": "{}"}, r"prompt.template: .*got \[''\]"),
        ({"template": "{query"}, "prompt.template: not a format string"),
        ({"template": "{query:.2f}"}, "prompt.template: not a format string"),
        ({"template": "{query:{width}}"}, "prompt.template: not a format string"),
        ({"answer_format": "{start_s}"}, r"prompt.answer_format: .*got \['start_s'\]"),
        ({"answer_format": "{start_s:d} {end_s:d}"}, "prompt.answer_format: not a format string"),
        ({"frame_times": "at {start_s}"}, r"prompt.frame_times: .*\['time_s'\], got \['start_s'\]"),
        ({"frame_times": "{time_s:d}"}, "prompt.frame_times: not a format string"),
        ({"template": None}, "exactly one of prompt.template and prompt.template_file"),
        ({"template_file": "x.txt"}, "exactly one of prompt.template and prompt.template_file"),
    ],
)
def test_invalid_templates_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_task(**changes)


def test_text_like_a_field_in_a_template_file_is_reported(tmp_path, caplog):
    path = tmp_path / "prompt.txt"
    path.write_text('Within {seconds} s: {query} as {"s": 1}')
    task = make_task(template=None, template_file=str(path))
    assert user_text(task, "a cat") == 'Within {seconds} s: a cat as {"s": 1}'
    (record,) = caplog.records
    assert record.getMessage() == (
        f"prompt.template_file: {path} contains {{seconds}}, which stays in the prompt as text: "
        "only the query is filled in"
    )


def test_unusable_template_file_is_named(tmp_path):
    missing, binary, bare = (tmp_path / name for name in ("missing", "binary", "bare"))
    binary.write_bytes(b"\xff\xfe\x00")
    bare.write_text("no mark in here")
    for path in (missing, binary):
        with pytest.raises(ValueError, match=f"prompt.template_file: cannot read {path}"):
            make_task(template=None, template_file=str(path))
    message = f"prompt.template_file: {bare} contains {{}} 0 times: expected it once, or {{query}}"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_task(template=None, template_file=str(bare))


@pytest.mark.parametrize(
    ("video_first", "expected"), [(True, ["video", "text"]), (False, ["text", "video"])]
)
def test_video_first_sets_the_order_of_video_and_text(video_first, expected):
    (turn,) = make_task(video_first=video_first).messages(example("a cat"))
    assert turn["role"] == "user"
    assert [part["type"] for part in turn["content"]] == expected


def test_system_message_is_optional_and_comes_first():
    assert [m["role"] for m in make_task(system=None).messages(example("a"))] == ["user"]
    first, second = make_task(system="Be kind.").messages(example("a"))
    assert first == {"role": "system", "content": [{"type": "text", "text": "Be kind."}]}
    assert second["role"] == "user"


@pytest.mark.parametrize(
    ("lowercase", "strip_period", "expected"),
    [
        (True, True, "a person at ikea. they sit"),
        (True, False, "a person at ikea. they sit."),
        (False, True, "A person at IKEA. They sit"),
        (False, False, "A person at IKEA. They sit."),
    ],
)
def test_lowercase_and_strip_period_change_the_query(lowercase, strip_period, expected):
    task = make_task(lowercase=lowercase, strip_period=strip_period)
    assert task.query_text("  A person at IKEA. They sit. \n") == expected
    assert user_text(task, "A person at IKEA. They sit.") == expected


def test_target_is_parsed_back():
    answer = "<answer>{start_s:.2f} to {end_s:.2f}</answer>"
    task = make_task(answer_format=f"<think>At {{start_s:.0f}}</think> {answer}")
    target = task.target(labelled(Segment(1.234, 10.0)))
    assert target == "<think>At 1</think> <answer>1.23 to 10.00</answer>"
    parsed = task.parse(target)
    assert parsed.segment == Segment(1.23, 10.0)
    assert parsed.thought == "At 1"


def test_unreadable_answer_has_no_segment():
    assert make_task().parse("I see nothing.").segment is None


def test_custom_parser_is_used():
    def parser(text, *, anywhere):
        return ParsedAnswer(segment=Segment(1.0, 2.0) if anywhere else None, answer=text)

    task = make_task(parser=parser)
    assert task.parse("x").segment is None
    assert task.parse("x", anywhere=True) == ParsedAnswer(segment=Segment(1.0, 2.0), answer="x")


def test_prompt_without_answer_format_has_no_target():
    with pytest.raises(ValueError, match=r"^prompt.answer_format: null: this prompt has no"):
        make_task(answer_format=None).target(labelled(Segment(0.0, 1.0)))


def test_escaped_line_breaks_in_a_prefill_are_decoded():
    assert make_task(prefill=r"<think>\n\n</think>").prefill == "<think>\n\n</think>"
    assert make_task(prefill="a\nb").prefill == "a\nb"


ANSWERS = {"answer_format": "<answer>{start_s:.1f} to {end_s:.1f}</answer>", "think": False}


def test_strict_answer_accepts_only_the_requested_format():
    exact, trailing = "<answer>1.2 to 6.0</answer>", "<answer>1.2 to 6 6</answer>"
    tolerant, strict = make_task(**ANSWERS), make_task(**ANSWERS, strict_answer=True)
    for task in (tolerant, strict):
        assert task.parse(exact).segment == Segment(1.2, 6.0)
        assert [task.has_exact_format(text) for text in (exact, trailing)] == [True, False]
    assert tolerant.parse(trailing).segment == Segment(1.2, 6.0)
    for anywhere in (False, True):
        assert strict.parse(trailing, anywhere=anywhere).segment is None
    assert strict.parse(trailing).answer == "1.2 to 6 6"


def test_prefilled_thought_is_not_required_in_the_completion():
    task = make_task(**{**ANSWERS, "think": True}, prefill="<think>\n</think>\n")
    assert task.has_exact_format("<answer>1.2 to 6.0</answer>")
