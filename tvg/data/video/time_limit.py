"""Limits the time of a decoder, even if it hangs inside its C library.

No signal or thread can interrupt a call into C. Decoding therefore runs in a separate process,
which is killed and replaced at a timeout. The process is started with `subprocess`, which, unlike
`multiprocessing`, is allowed inside DataLoader workers. It is reused for later clips, because a
start takes about a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from tvg.data.video.decode import Frames, VideoDecoder, VideoError, VideoInfo

START_LIMIT_S = 120.0  # for importing the libraries, even from a slow disk
ALARM_GRACE_S = 2.0  # the child's own alarm is a fallback
_CHILD_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from tvg.data.video.decode_process import serve; serve(int(sys.argv[1]))"
)


class TimeLimitedDecoder(VideoDecoder):
    """Runs another decoder in a process that is killed if decoding a clip takes too long.

    The limit applies to the time spent waiting for the decoder, from opening the file to its last
    frame. A VideoError is also raised if the decoding process dies (a crash in C, out of memory).
    The class is safe with threads (one clip at a time), forks and pickling, because each process
    starts its own child.

    Args:
        decoder: the decoder to run; must be picklable and importable.
        timeout_s: maximum waiting time for one clip in seconds.
    """

    def __init__(self, *, decoder: VideoDecoder, timeout_s: float) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive: got {timeout_s}")
        self.decoder = decoder
        self.timeout_s = timeout_s
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"decoder": self.decoder, "timeout_s": self.timeout_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[_RemoteVideo]:
        if self._owner != os.getpid():  # forked: the child belongs to the parent process
            if self._child is not None:
                self._child.disown()
            self._reset()
        with self._lock:
            if self._child is None:
                self._child = _Child(self.decoder, self.timeout_s)
            video = _RemoteVideo(self._child, os.fspath(path), self.timeout_s)
            try:
                video.start()
                yield video
                video.finish()
            finally:
                if not video.is_over:  # hung, dead, or interrupted
                    self._child.stop()
                    self._child = None


class _RemoteVideo:
    """A file opened in the child process."""

    info: VideoInfo

    def __init__(self, child: _Child, path: str, timeout_s: float) -> None:
        self._child, self._path, self._timeout_s = child, path, timeout_s
        self._left_s = timeout_s
        self.is_over = False  # the child waits for the next file

    def start(self) -> None:
        self._send(self._path)
        _, self.info = self._receive()

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        self._send(list(indices))
        while True:
            kind, *rest = self._receive()
            if kind == "done":
                return
            frames = np.empty(rest[0], np.uint8)
            try:
                self._child.pipe.recv_bytes_into(memoryview(frames).cast("B"))  # type: ignore[arg-type]
            except (EOFError, ConnectionResetError):
                raise self._died() from None
            yield frames

    def finish(self) -> None:
        self._send(None)
        self._receive()
        self.is_over = True

    def _send(self, request: object) -> None:
        try:
            self._child.pipe.send(request)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died() from None

    def _receive(self) -> tuple[Any, ...]:
        begin = time.monotonic()
        try:
            if not self._child.pipe.poll(max(0.0, self._left_s)):
                raise self._timed_out()
            answer: tuple[Any, ...] = self._child.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        self._left_s -= time.monotonic() - begin
        if answer[0] == "error":
            self.is_over = True
            raise answer[1]
        if answer[0] == "crash":
            self.is_over = True
            raise RuntimeError(f"the decoder failed on {self._path}:\n{answer[1]}")
        return answer

    def _timed_out(self) -> VideoError:
        return VideoError(
            self._path,
            f"was not decoded within the time limit of {self._timeout_s:g} s per clip "
            f"(timeout_s); the decoder was stopped",
        )

    def _died(self) -> VideoError:
        status = self._child.wait()
        if status == -signal.SIGALRM:
            return self._timed_out()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return VideoError(self._path, f"the decoder process died ({how})")


class _Child:
    """The decoding process and our end of its pipe."""

    def __init__(self, decoder: VideoDecoder, limit_s: float) -> None:
        self.pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD_CODE, str(theirs.fileno()), json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # keeps signals to the parent's group away from the child
            )
        self._finalizer = weakref.finalize(self, _stop, os.getpid(), self.pipe, self._process)
        try:
            self.pipe.send((decoder, limit_s + ALARM_GRACE_S))
            is_ready = self.pipe.poll(START_LIMIT_S) and self.pipe.recv() == ("ready",)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            is_ready = False
        except BaseException:
            self.stop()
            raise
        if not is_ready:
            self.stop()
            raise RuntimeError(
                f"the decoding process for timeout_s did not start: "
                f"exit status {self._process.returncode}; its error message is printed above"
            )

    def wait(self) -> int:
        """Waits for the process (its pipe is closed) and returns its status."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=5)
        self._process.kill()
        return self._process.wait()

    def stop(self) -> None:
        self._finalizer()

    def disown(self) -> None:
        """Releases a child that belongs to the process from which this one was forked."""
        self._finalizer.detach()
        self.pipe.close()
        self._process.returncode = 0  # otherwise its clean-up warns that it still runs


def _stop(owner: int, pipe: Connection, process: subprocess.Popen[bytes]) -> None:
    if os.getpid() != owner:
        return
    pipe.close()
    process.kill()
    process.wait()
