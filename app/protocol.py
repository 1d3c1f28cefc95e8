"""HTTP/1.1 by uvicorn and httptools, with bounds on what no application is asked about: heads, and waiting requests.

Bodies are bounded where they are read; before a head is whole, no application is asked. A client that hardly reads
its answer is as idle as one that asks nothing, and no connection is kept for either. A stop does not wait for idle
clients.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.errors import RequestError, problem

_MAX_HEAD_BYTES = 2**16
_HEAD_TIMEOUT_S = 10.0
_MOST_WAITING = 32
"""Requests of one connection that wait until those before them are answered: each takes some kilobytes."""


class BoundedHeadProtocol(HttpToolsProtocol):
    """Answers 400 to a head that is too long, and closes on one that takes too long, or when too many requests wait."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0
        self._in_head = True
        self._head_has_begun = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)
        if self._answering is not None:  # uvicorn tells the last request alone, which may wait behind this one
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)  # a head, a piece of a body, or a message that ends in this data sets it back
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")
        if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"the head of the request has more than {_MAX_HEAD_BYTES:,} bytes")
        if self._in_head and self._answering is None:  # behind another request, nobody hurries a head
            self._start_head_timer()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
            else:
                return

    def _without_upgrade(self, rest: bytes) -> bytes:
        """The request once more, without its wish for another protocol, which a server may ignore (RFC 9110, 7.8).

        The parser takes what follows such a head for that protocol's, and reads no body.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise httptools.HttpParserError
        head = b"%b %b HTTP/%b\r\n" % (method, self.url, version)
        headers = b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
        return head + headers + b"\r\n" + rest

    def send_400_response(self, msg: str) -> None:
        """A problem document, as whatever else is refused; none where it would be read as the answer before it."""
        if self._answering is not None and (self._in_head or self._answering.response_started):
            self.transport.close()
            return
        error = RequestError(400, "malformed_request", msg)
        content = orjson.dumps(problem(error, instance="", request_id=uuid.uuid4().hex))
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(content) + content)
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_has_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer, which may follow a body, is none
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if len(self.pipeline) >= _MOST_WAITING:
            self.transport.close()
            raise httptools.HttpParserError
        self._stop_head_timer()
        self._head_has_begun = self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._answering = None
        super().on_response_complete()
        if self._answering is None and self._head_has_begun:
            self._start_head_timer()

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

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_TIMEOUT_S, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
