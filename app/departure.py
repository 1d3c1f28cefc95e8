"""Clients that leave: one that hangs up while its answer is made, one that is answered before its body is whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RequestError

_LINGER_S = 2.0
_LINGER_BYTES = 2**26
"""How long and how much a client that was refused may go on sending, so that it reads the answer, not a reset."""


@asynccontextmanager
async def cancelled_if_client_leaves(request: Request) -> AsyncIterator[None]:
    """Cancel what runs inside when the client hangs up. The body must have been read.

    Raises:
        RequestError: ``client_left``; nobody is there to see it, but it is counted as what it is.
    """
    worker = asyncio.current_task()
    assert worker is not None  # noqa: S101 - a request is always handled in a task
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        worker.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left or worker.uncancel():
            raise
        raise RequestError(400, "client_left", "the client left before its answer was there") from None
    finally:
        watcher.cancel()


class UnreadBodies:
    """The outermost of our own layers: an answer that comes before the end of its request's body closes the connection.

    What the client still sends is read for a while, and forgotten, so that it sees the answer rather than a reset.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        body = _UnreadBody(receive)
        closes = False

        async def send_and_close(message: Message) -> None:
            nonlocal closes
            if message["type"] == "http.response.start" and not body.ended:
                closes = True
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            elif closes and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await body.linger()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, body, send_and_close)


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


class _UnreadBody:
    """A request's ``receive``, which knows whether the body has been read to its end."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read_bytes = 0
        self.ended = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._read_bytes += len(message.get("body", b""))
        self.ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def linger(self) -> None:
        """Read on, and forget it, until the body ends or it is enough."""
        enough = self._read_bytes + _LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not self.ended and self._read_bytes < enough:
                    await self()
