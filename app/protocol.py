"""HTTP/1.1 by uvicorn and httptools, with a bound on a request's head: its bytes, and the time it may take.

Bodies are bounded where they are read; before a head is whole, no application is asked. A client that hardly reads
its answer is as idle as one that asks nothing, and no connection is kept for either. A stop does not wait for idle
clients.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import RequestError, problem

_MAX_HEAD_BYTES = 2**16
_HEAD_TIMEOUT_S = 10.0


class BoundedHeadProtocol(HttpToolsProtocol):
    """Answers 400 to a head that is too long, and closes on one that takes too long."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_HEAD_TIMEOUT_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)  # a head or a message that ends in this data sets it back
        super().data_received(data)
        if self._in_head and self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"the head of the request has more than {_MAX_HEAD_BYTES:,} bytes")

    def send_400_response(self, msg: str) -> None:
        """A problem document, as whatever else is refused; no application has seen the request."""
        error = RequestError(400, "malformed_request", msg)
        content = orjson.dumps(problem(error, instance="", request_id=uuid.uuid4().hex))
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(content) + content)
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_TIMEOUT_S, self.transport.close)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def shutdown(self) -> None:
        """Close what is idle without a farewell: under TLS an idle client's own would be waited for, for 30 s."""
        super().shutdown()
        if self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():  # which a close would wait for
            self.transport.abort()

    def pause_writing(self) -> None:
        """The answer is more than the network takes at once."""
        super().pause_writing()
        self._watch_reading(before=None)

    def resume_writing(self) -> None:
        self._stop_unread_timer()
        super().resume_writing()

    def _watch_reading(self, before: int | None) -> None:
        """End the connection unless half of what waited ``before`` has been read by now."""
        unread = self.transport.get_write_buffer_size()
        if before is not None and unread > before // 2:
            self.transport.abort()
        else:
            self._unread_timer = self.loop.call_later(self.timeout_keep_alive, self._watch_reading, unread)

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
