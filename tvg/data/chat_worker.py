"""Child process of `tvg.data.chat_template`: renders templates within a memory limit.

The file runs as a script and imports Jinja but no module of tvg. Each input line is a JSON request,
`{"template": ..., "values": {...}}`. Each output line is an answer, `{"text": ...}` or
`{"error": ...}`. The sandboxed environment follows transformers (utils/chat_template_utils.py).
The process exits when its input ends. If the parent is killed while a template hangs, an alarm
signal ends the process, so that no orphan remains.
"""

from __future__ import annotations

import functools
import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARS = 4 * 2**20  # of a rendered prompt


class _Generation(jinja2.ext.Extension):
    """The `{% generation %}` tag: marks answers for training and does not change the text."""

    tags = {"generation"}  # noqa: RUF012 - as in the base class

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


@functools.lru_cache(maxsize=4)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def answer(request: dict[str, Any], memory_mib: int) -> dict[str, str]:
    """Returns the answer to a request; an exception of the template becomes an "error" answer."""
    try:
        text = _compiled(request["template"]).render(**request["values"])
    except MemoryError:
        return {"error": f"it needs more than {memory_mib} MiB of memory"}
    except Exception as error:  # a template can raise anything
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    if len(text) > MAX_CHARS:
        return {"error": f"it writes {len(text):,} characters; at most {MAX_CHARS:,} are allowed"}
    return {"text": text}


def main() -> None:
    """Answers requests until the input ends.

    Command-line arguments: memory limit in MiB, time limit per request in seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    memory_mib, limit_s = int(sys.argv[1]), float(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib * 2**20, memory_mib * 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent ends this process
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        sys.stdout.write(json.dumps(answer(json.loads(line), memory_mib)) + "\n")
        sys.stdout.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
