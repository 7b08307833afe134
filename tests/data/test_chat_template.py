"""Tests that chat templates are rendered as in transformers, within time and memory limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.tiny_policy import make_parts, make_task
from transformers.utils.chat_template_utils import render_jinja_template

from tvg.data.chat_template import TemplateLimits, render_chat
from tvg.types import GroundingExample

MESSAGES = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Find: <é> \ud800"}]},
]
LIMITS = TemplateLimits(timeout_s=60.0, memory_mib=256)


def processor(template: Any) -> Any:
    tokenizer = SimpleNamespace(special_tokens_map={"eos_token": "<end>"})
    return SimpleNamespace(chat_template=template, tokenizer=tokenizer)


def refused(template: Any, limits: TemplateLimits = LIMITS) -> str:
    with pytest.raises(ValueError, match="chat template") as caught:
        render_chat(processor(template), MESSAGES, limits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m | tojson }}\n  {% endif %}\n"
        "{% endfor %}",
        "{{ eos_token }}{% if add_generation_prompt %}go{% endif %}{{ tools }}{{ none_such }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}"
        "{% endfor %}",
        "a{% generation %}{{ messages[0].role }}{% endgeneration %}b\n",
        "{{ messages | tojson(indent=2, sort_keys=true) }}{{ '%s-%d' | format('a', 3) }}",
        "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}"
        "{{ n.x }}",
    ],
)
def test_a_template_is_rendered_as_transformers_does(template):
    expected, _ = render_jinja_template(
        conversations=[MESSAGES],
        chat_template=template,
        add_generation_prompt=True,
        eos_token="<end>",
    )
    assert render_chat(processor(template), MESSAGES, LIMITS) == expected[0]


def test_a_checkpoints_prompt_equals_the_processors_prompt(tiny_checkpoint, tiny_world):
    made = make_parts(tiny_checkpoint, tiny_world).processor
    example = GroundingExample(
        qid="a", video="a", video_path=None, query="a ball", segment=None, duration_s=1.0
    )
    for system in (None, "Be brief."):
        messages = make_task(system=system).messages(example)
        assert render_chat(made, messages, LIMITS) == made.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )


def test_the_released_template_is_rendered_as_transformers_does(shared_dir):
    folder = shared_dir / "data" / "release_layout" / "qwen2_5_vl"
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    expected, _ = render_jinja_template(
        conversations=[MESSAGES], chat_template=template, add_generation_prompt=True
    )
    assert render_chat(processor(template), MESSAGES, LIMITS) == expected[0]


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_an_endless_template_is_stopped():
    assert "it takes more than 1 s" in refused(
        ENDLESS, TemplateLimits(timeout_s=1.0, memory_mib=256)
    )
    assert render_chat(processor("fine"), MESSAGES, LIMITS) == "fine"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**10 }}",
        "{% set n = namespace(x='xx') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}"
        "{% endfor %}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ [0] * 10**10 }}",
        "{{ 'x' | center(10**10) }}",
    ],
)
def test_a_template_that_exceeds_the_memory_limit_is_stopped(template):
    message = refused(template)
    assert "it needs more than 256 MiB of memory" in message or "its process ended" in message
    assert render_chat(processor("fine"), MESSAGES, LIMITS) == "fine"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only text') }}", "TemplateError: only text"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ 'x' * 5000000 }}", "it writes 5,000,000 characters"),
        (None, "expected a text, got NoneType"),
        ({"default": 3}, "expected a text, got int"),
    ],
)
def test_a_failing_template_gives_one_error_line(template, message):
    assert message in refused(template)


def test_a_forked_process_starts_its_own_renderer():
    assert render_chat(processor("a"), MESSAGES, LIMITS) == "a"
    child = os.fork()
    if child == 0:
        try:
            texts = {render_chat(processor(f"b{n}"), MESSAGES, LIMITS) for n in range(20)}
            os._exit(0 if texts == {f"b{n}" for n in range(20)} else 1)
        finally:
            os._exit(2)
    texts = {render_chat(processor(f"a{n}"), MESSAGES, LIMITS) for n in range(20)}
    deadline_s = time.monotonic() + 60
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    assert texts == {f"a{n}" for n in range(20)}


KILLED = """
import os, sys
sys.path[:0] = {path!r}
from types import SimpleNamespace
from tvg.data import chat_template
from tvg.data.chat_template import TemplateLimits, render_chat

tokenizer = SimpleNamespace(special_tokens_map={{}})
limits = TemplateLimits(timeout_s=1.0, memory_mib=256)
render_chat(SimpleNamespace(chat_template="a", tokenizer=tokenizer), [], limits)
print(chat_template._RUNNING[limits].process.pid, flush=True)
render_chat(SimpleNamespace(chat_template={template!r}, tokenizer=tokenizer), [], limits)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("template", ["fine", ENDLESS])
def test_a_killed_process_leaves_no_renderer(template):
    code = KILLED.format(path=sys.path, template=template)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as parent:
        renderer = int(parent.stdout.readline())
        time.sleep(0.3)  # the template is being rendered
        parent.kill()
    deadline_s = time.monotonic() + 30
    while is_running(renderer) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not is_running(renderer)


def is_running(pid: int) -> bool:
    """Returns whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_renderer_survives_a_signal_to_the_group():
    script = """
import os, signal
from types import SimpleNamespace
from tvg.data.chat_template import DEFAULT_LIMITS, render_chat
tokenizer = SimpleNamespace(special_tokens_map={})
processor = SimpleNamespace(chat_template="fine", tokenizer=tokenizer)
render_chat(processor, [], DEFAULT_LIMITS)
signal.signal(signal.SIGTERM, lambda *_: None)
os.killpg(0, signal.SIGTERM)
print(render_chat(processor, [], DEFAULT_LIMITS))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )
    assert done.stdout == "fine\n"
