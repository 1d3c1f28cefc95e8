"""One decoding process: ``python -m app.decode_process SOCKET MEMORY MAX_PIXELS``. See also :mod:`app.decoder`.

Enters, as one message on the socket: how many bytes of picture lie at the start of the shared memory, and the
preprocessing as JSON. Leaves: the pixels at the start of the same memory, and a message with the
picture's size; or a message with what is wrong with it.
"""

from __future__ import annotations

import functools
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path

from app.parent import end_with_parent
from tresnet.picture import PictureError, Preprocessing, TooManyPixelsError, prepare

REQUEST = struct.Struct("<Q")
"""Length of the picture in bytes; the preprocessing follows."""
ANSWER = struct.Struct("<cII")
"""Kind, and the upright picture's width and height; the fault's message follows."""
READY, PREPARED, UNDECODABLE, TOO_MANY_PIXELS = b"r", b"p", b"u", b"t"
MESSAGE_BYTES = 16 * 1024
_SPARE_BYTES = 256 * 2**20
_ALLOWED_BYTES_A_PIXEL = 32
"""Of address space. Pictures take 16.5 at most, as far as measured (docs/decisions/0007-pictures-from-strangers.md)."""
_KEPT_BYTES = 4 * 2**20
_NICENESS = 5
"""Below the gateway, which has work for all of them: a tenth more requests/s on busy cores. Not by more, for a model on
the same cores is not to starve them (docs/decisions/0009-decoding-in-processes.md)."""


@functools.cache
def _preprocessing(json: bytes) -> Preprocessing:
    return Preprocessing.model_validate_json(json)


def _answer(request: bytes, memory: int, max_pixels: int) -> bytes:
    (length,) = REQUEST.unpack_from(request)
    data = os.pread(memory, length, 0)
    if length > _KEPT_BYTES:
        os.ftruncate(memory, 0)
    try:
        picture = prepare(data, _preprocessing(request[REQUEST.size :]), max_pixels=max_pixels)
    except PictureError as error:
        kind = TOO_MANY_PIXELS if isinstance(error, TooManyPixelsError) else UNDECODABLE
        return ANSWER.pack(kind, 0, 0) + str(error).encode()[: MESSAGE_BYTES - ANSWER.size]
    os.pwrite(memory, picture.pixels.data, 0)
    return ANSWER.pack(PREPARED, picture.width, picture.height)


def _limit_memory(max_pixels: int) -> None:
    """What a decoder allocates beyond what the largest accepted picture takes fails, and the picture with it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _SPARE_BYTES + _ALLOWED_BYTES_A_PIXEL * max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(connection: socket.socket, memory: int, max_pixels: int) -> None:
    """Answer until the other side goes away."""
    end_with_parent(signal.SIGKILL)  # amid a picture it would see no other side going away
    os.nice(_NICENESS)
    _limit_memory(max_pixels)
    connection.send(ANSWER.pack(READY, 0, 0))
    while request := connection.recv(MESSAGE_BYTES):
        connection.send(_answer(request, memory, max_pixels))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
