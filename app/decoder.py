"""Pictures' bytes to pixels, in processes of their own. The other side of each is :mod:`app.decode_process`.

Bytes on the internet are hostile, and decoders are C: one that crashes, hangs or takes all memory takes down its
process and fails its own picture alone. The process is replaced; the gateway and the other pictures see nothing of it.
A picture whose process ended is tried once more, in a new one, for it may not have been its fault.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np

from app.decode_process import ANSWER, MESSAGE_BYTES, PREPARED, READY, REQUEST, TOO_MANY_PIXELS, UNDECODABLE
from app.errors import DeadlineError, RequestError
from app.freed_memory import PICTURES
from app.settings import Settings
from tresnet.picture import PreparedPicture, Preprocessing

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0
"""Before a process is started again that ended before it was ready: something is wrong here, not with a picture."""
_START_TIMEOUT_S = 60.0
_FAULTS = {UNDECODABLE: (422, "undecodable_image"), TOO_MANY_PIXELS: (413, "too_many_pixels")}


@dataclass(eq=False)
class _Job:
    data: bytes
    how: Preprocessing
    answer: asyncio.Future[PreparedPicture]
    is_suspect: bool = False


@dataclass(eq=False)
class _Process:
    process: subprocess.Popen[bytes]
    connection: socket.socket
    memory: int
    job: _Job | None = None
    is_ready: bool = False
    overdue: asyncio.TimerHandle | None = None

    def release(self) -> _Job | None:
        """The picture that it was at, which is off its hands now."""
        if self.overdue is not None:
            self.overdue.cancel()
        job, self.job, self.overdue = self.job, None, None
        return job


class Decoder:
    """``await decoder(data, how)``; pictures wait in one queue for the next idle process."""

    def __init__(self, settings: Settings) -> None:
        self._count = settings.decode_processes_per_worker
        self._max_pixels = settings.max_pixels
        self._timeout_s = settings.decode_timeout_ms / 1000
        self._waiting: deque[_Job] = deque()
        self._suspects: deque[_Job] = deque()
        self._idle: list[_Process] = []
        self._processes: set[_Process] = set()
        self._is_open = False

    @property
    def is_backlogged(self) -> bool:
        """Whether pictures wait for a process."""
        return bool(self._waiting)

    async def start(self) -> None:
        """Start the processes; pictures given before they are ready wait."""
        self._is_open = True
        for _ in range(self._count):
            self._start_process()

    async def close(self) -> None:
        """End the processes, whatever they are at."""
        self._is_open = False
        for own in list(self._processes):
            own.process.kill()
            self._close_process(own)
            own.process.wait()

    async def __call__(self, data: bytes, how: Preprocessing) -> PreparedPicture:
        """The picture in ``data``, prepared.

        Raises:
            RequestError: 422 ``undecodable_image`` or 413 ``too_many_pixels``.
            DeadlineError: if decoding takes longer than ``decode_timeout_ms``.
        """
        job = _Job(data, how, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._dispatch()
        try:
            return await job.answer
        finally:
            job.data = b""  # of one who has left, nobody counts it any more

    def _dispatch(self) -> None:
        while self._idle and self._waiting:
            self._give(self._idle.pop(), self._waiting)

    def _give(self, own: _Process, jobs: deque[_Job]) -> None:
        """The next of ``jobs`` whose caller is still there and has time left; without one, ``own`` becomes idle."""
        while jobs and jobs[0].answer.done():
            jobs.popleft()
        if not jobs:
            self._idle.append(own)
            return
        own.job = job = jobs.popleft()
        own.overdue = asyncio.get_running_loop().call_later(self._timeout_s, self._give_up, own)
        os.pwrite(own.memory, job.data, 0)
        with suppress(OSError):  # it has died while idle, which is about to be read
            own.connection.send(REQUEST.pack(len(job.data)) + _as_json(job.how))

    def _start_process(self) -> None:
        if not self._is_open:
            return
        loop = asyncio.get_running_loop()
        try:
            own = _spawn(self._max_pixels)
        except OSError as error:  # out of file descriptors or memory: both pass
            logger.error("no decoding process can be started now: %s", error)
            loop.call_later(_PAUSE_S, self._start_process)
            return
        self._processes.add(own)
        own.overdue = loop.call_later(_START_TIMEOUT_S, self._give_up, own)
        loop.add_reader(own.connection.fileno(), self._read, own)

    def _read(self, own: _Process) -> None:
        try:
            message = own.connection.recv(MESSAGE_BYTES)
        except OSError:
            message = b""
        if not message:
            self._replace(own)
            return
        kind, width, height = ANSWER.unpack_from(message)
        job = own.release()
        own.is_ready = True
        if job is not None and not job.answer.done():
            if kind == PREPARED:
                pixels = np.empty((job.how.image_size, job.how.image_size, 3), np.uint8)
                os.preadv(own.memory, [pixels.data], 0)
                job.answer.set_result(PreparedPicture(pixels, width, height))
            else:
                status, code = _FAULTS[kind]
                job.answer.set_exception(RequestError(status, code, message[ANSWER.size :].decode(errors="replace")))
        self._give(own, self._suspects if kind == READY else self._waiting)
        self._dispatch()

    def _replace(self, own: _Process) -> None:
        job = own.release()
        self._close_process(own)
        logger.warning("a decoding process ended with status %s and is replaced", own.process.wait())
        if job is not None and not job.answer.done():
            if not job.is_suspect:
                job.is_suspect = True
                self._suspects.append(job)
            else:
                fault = RequestError(422, "undecodable_image", "the picture is damaged: it cannot be decoded")
                job.answer.set_exception(fault)
        asyncio.get_running_loop().call_later(0 if own.is_ready else _PAUSE_S, self._start_process)
        self._dispatch()

    def _give_up(self, own: _Process) -> None:
        """Kill a process that takes too long; :meth:`_read` sees that it has ended, and replaces it."""
        logger.warning("a decoding process takes too long to %s", "decode a picture" if own.job else "start")
        if own.job is not None and not own.job.answer.done():
            own.job.answer.set_exception(DeadlineError())
        own.process.kill()

    def _close_process(self, own: _Process) -> None:
        asyncio.get_running_loop().remove_reader(own.connection.fileno())
        self._processes.discard(own)
        if own in self._idle:
            self._idle.remove(own)
        own.connection.close()
        os.close(own.memory)


def _spawn(max_pixels: int) -> _Process:
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        memory = os.memfd_create("picture")
        stack.callback(os.close, memory)
        ours.setblocking(False)
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "app.decode_process", str(theirs.fileno()), str(memory), str(max_pixels)],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), memory),
            process_group=0,  # a Ctrl-C in the terminal is for the gateway, which finishes its pictures first
            env={**PICTURES, **os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        stack.pop_all()
    theirs.close()
    return _Process(process, ours, memory)


@functools.cache
def _as_json(how: Preprocessing) -> bytes:
    return how.model_dump_json().encode()
