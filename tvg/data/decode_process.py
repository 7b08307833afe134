"""The child's side of `tvg.data.time_limit`: a process that does nothing but decode.

One pipe carries the process's own objects. First comes (decoder, limit_s), answered by
("ready",). Then, for each file, its path, answered by ("info", VideoInfo); then lists of indices,
each answered by ("chunk", shape) followed by the pixels, as often as needed, and ("done",); then
None, answered by ("closed",). Instead of any answer may come ("error", VideoError) or
("crash", traceback), which ends the file's turn. The process ends when the pipe is closed.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection

from tvg.data.decode import OpenVideo, VideoDecoder, VideoError
from tvg.data.memory_limit import limit_memory, memory_problem


def serve(descriptor: int) -> None:
    """Answers requests on the inherited pipe until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the owner's business, who ends this process
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
    """Lets the kernel end this process when one step hangs: no orphan outlives a killed parent."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
