"""Runs a decoder in the child process of `tvg.data.video.time_limit`.

Parent and child exchange Python objects over one pipe. The parent first sends (decoder, limit_s);
the child answers ("ready",). Then, for each file:

- The parent sends the path; the answer is ("info", VideoInfo).
- The parent sends lists of indices. The answer to each is any number of ("chunk", shape), each
  followed by the pixels, then ("done",).
- The parent sends None; the answer is ("closed",).

Any answer may be ("error", VideoError) or ("crash", traceback) instead, which ends the work on this
file. The process ends when the pipe is closed.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection

from tvg.core.interruption import SIGNALS
from tvg.data.video.decode import OpenVideo, VideoDecoder, VideoError
from tvg.data.video.memory_limit import limit_memory, memory_problem


def serve(descriptor: int) -> None:
    """Answers requests on the inherited pipe until the pipe closes."""
    for number in SIGNALS:  # the parent ends this process
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(descriptor)
    try:
        decoder, limit_s = pipe.recv()
        decoder.import_library()
        limit_memory(decoder.memory_mib)
        pipe.send(("ready",))
        while True:
            _serve_file(pipe, decoder, limit_s, pipe.recv())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _serve_file(pipe: Connection, decoder: VideoDecoder, limit_s: float, path: str) -> None:
    try:
        with ExitStack() as stack:
            with alarm(limit_s):
                video = stack.enter_context(decoder.open(path))
            pipe.send(("info", video.info))
            while (indices := pipe.recv()) is not None:
                _send_frames(pipe, video, limit_s, indices)
        pipe.send(("closed",))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        if (problem := memory_problem(error)) is not None:
            pipe.send(("error", VideoError(path, problem)))
        elif isinstance(error, VideoError):
            pipe.send(("error", error))
        else:  # a bug of the decoder: the parent raises it with this traceback
            pipe.send(("crash", traceback.format_exc()))


def _send_frames(pipe: Connection, video: OpenVideo, limit_s: float, indices: list[int]) -> None:
    frames = iter(video.frames(indices))
    while True:
        with alarm(limit_s):
            chunk = next(frames, None)
        if chunk is None:
            break
        pipe.send(("chunk", chunk.shape))
        pipe.send_bytes(chunk.tobytes())
    pipe.send(("done",))


@contextmanager
def alarm(limit_s: float) -> Iterator[None]:
    """Makes the kernel stop this process if a step hangs, even if the parent was killed."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
