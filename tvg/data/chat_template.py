"""Renders the chat templates of checkpoints in a process with time and memory limits.

A chat template is a program in the checkpoint. Jinja's sandbox denies it access to files and
modules. The separate process also stops infinite loops and excessive memory use.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("chat_worker.py")
_MAX_ANSWER_BYTES = 32 * 2**20
_ALARM_GRACE_S = 2.0  # the child's own alarm matters only if the parent was killed


@dataclass(frozen=True, kw_only=True)
class TemplateLimits:
    """Limits of rendering one prompt.

    Attributes:
        timeout_s: maximum time in seconds, including the start of the process.
        memory_mib: maximum memory of the process in MiB; Python and Jinja need about 50 MiB.
    """

    timeout_s: float
    memory_mib: int

    def __post_init__(self) -> None:
        for name in ("timeout_s", "memory_mib"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"template_limits.{name}: expected more than 0, got {getattr(self, name)}"
                )


DEFAULT_LIMITS = TemplateLimits(timeout_s=30.0, memory_mib=512)


def render_chat(
    processor: Any, messages: Sequence[Mapping[str, Any]], limits: TemplateLimits
) -> str:
    """Returns chat turns and the generation prompt as text, as `apply_chat_template` does.

    Args:
        processor: a processor with `chat_template` and `tokenizer`.
        messages: chat turns in Hugging Face's format.
        limits: time and memory limits.

    Raises:
        ValueError: the template fails or exceeds a limit; the message is one line.
    """
    template = processor.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise ValueError(f"chat template: expected a text, got {type(template).__name__}")
    values = {
        **{name: str(token) for name, token in _special_tokens(processor.tokenizer).items()},
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    request = json.dumps({"template": template, "values": values})
    with _LOCK:
        return _worker(limits).ask(request)


def _special_tokens(tokenizer: Any) -> dict[str, Any]:
    return {name: token for name, token in tokenizer.special_tokens_map.items() if token}


class _Worker:
    """A rendering process and the two pipes to it."""

    def __init__(self, limits: TemplateLimits) -> None:
        self.limits = limits
        self.owner = os.getpid()  # a forked process must not share the pipes
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-P", str(_WORKER)),
                *(str(limits.memory_mib), str(limits.timeout_s + _ALARM_GRACE_S)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # keeps signals to the parent's group away from the child
        )

    def ask(self, request: str) -> str:
        try:
            answer = json.loads(self._exchange(request.encode() + b"\n"))
        except (ValueError, OSError) as error:
            self.stop()
            reason = str(error) if isinstance(error, _LimitError) else "its process ended"
            raise ValueError(f"the checkpoint's chat template cannot be used: {reason}") from error
        if "error" in answer:
            raise ValueError(f"the checkpoint's chat template cannot be used: {answer['error']}")
        return str(answer["text"])

    def _exchange(self, request: bytes) -> bytes:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(request)
        self.process.stdin.flush()
        deadline_s = time.monotonic() + self.limits.timeout_s
        descriptor, received = self.process.stdout.fileno(), bytearray()
        while not received.endswith(b"\n"):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise _LimitError(f"it takes more than {self.limits.timeout_s:g} s")
            block = os.read(descriptor, 2**16)
            if not block or len(received) > _MAX_ANSWER_BYTES:
                raise OSError
            received += block
        return bytes(received)

    def stop(self) -> None:
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()


class _LimitError(ValueError):
    """A limit was exceeded."""


_LOCK = threading.Lock()
_RUNNING: dict[TemplateLimits, _Worker] = {}


def _worker(limits: TemplateLimits) -> _Worker:
    """Returns this process's worker; starts it on first use or if it has stopped."""
    found = _RUNNING.get(limits)
    if found is None or found.owner != os.getpid() or found.process.poll() is not None:
        found = _RUNNING[limits] = _Worker(limits)
    return found


@atexit.register
def _stop_all() -> None:
    for worker in _RUNNING.values():
        worker.stop()


os.register_at_fork(after_in_child=lambda: _forget())


def _forget() -> None:
    """Makes a forked process start its own worker."""
    global _LOCK
    _LOCK = threading.Lock()
    _RUNNING.clear()
