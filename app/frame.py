"""Around every request: its id, its errors as problem documents, its counts, its span and its line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Collection

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access import POLLED
from app.errors import DrainingError, ServiceError, problem
from app.logs import log_request
from app.metrics import Metrics
from app.record import RequestRecord
from app.tracing import Tracing

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_COUNTED_AS_REJECTED = {"draining", "queue_full", "body_too_large", "too_many_images", "unauthorized", "rate_limited"}
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


class RequestFrame:
    """Around the routes and their keys; ``routes`` are the paths that may become a metric's label.

    Outside of it lie only layers that see to connections and to CORS: see ``_add_layers`` in :mod:`app.api`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing, routes: Collection[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = _new_record(scope)
        state = scope.setdefault("state", {})
        state["request_id"], state["record"] = record.request_id, record
        if scope["path"] not in POLLED:  # no trace is worth it
            self.tracing.begin(record)
        status = 500
        begun = False

        async def send_framed(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                own = (b"x-request-id", record.request_id.encode())
                message = {**message, "headers": [*message["headers"], own, *_SECURITY_HEADERS]}
            await send(message)

        try:
            await self.app(scope, receive, send_framed)
        except ServiceError as error:
            error.forget_frames()
            record.code = error.code
            if error.code in _COUNTED_AS_REJECTED:
                self.metrics.rejected.labels(error.code).inc()
            await problem_response(error, scope["path"], record.request_id)(scope, receive, send_framed)
        except asyncio.CancelledError:  # by the server, which stops and has waited for as long as it may
            record.code = "draining"
            if begun:
                raise
            late = DrainingError("this server has shut down before the answer was there; try again")
            await problem_response(late, scope["path"], record.request_id)(scope, receive, send_framed)
        except Exception:
            record.code = ServiceError.code
            if begun:
                raise
            logger.exception("request %s failed", record.request_id)
            fault = ServiceError("an unexpected fault; it was logged under the request's id")
            await problem_response(fault, scope["path"], record.request_id)(scope, receive, send_framed)
        finally:
            self._close(scope, record, status)

    def _close(self, scope: Scope, record: RequestRecord, status: int) -> None:
        route = getattr(scope.get("route"), "path", None) or (
            scope["path"] if scope["path"] in self.routes else "unknown"
        )
        self.metrics.requests.labels(route, scope["method"], str(status)).inc()
        self.metrics.duration.labels(route).observe(time.perf_counter() - record.times.started)
        if record.key is not None:
            self.metrics.key_requests.labels(record.key, str(status)).inc()
        self.tracing.end(record, method=scope["method"], route=route, status=status)
        log_request(_level(route, status), record.fields(method=scope["method"], route=route, status=status))


def _level(route: str, status: int) -> int:
    if status == 500:
        return logging.ERROR
    if route in POLLED:  # a line for each would drown the rest
        return logging.DEBUG
    return logging.WARNING if status > 500 else logging.INFO


def _new_record(scope: Scope) -> RequestRecord:
    headers = Headers(scope=scope)
    given, traceparent = headers.get("x-request-id", ""), headers.get("traceparent", "")
    return RequestRecord(
        given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex,
        client=scope["client"][0] if scope.get("client") else None,
        traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else None,
    )


def problem_response(error: ServiceError, instance: str, request_id: str) -> Response:
    """``error`` as the RFC 9457 document that the client gets."""
    return Response(
        orjson.dumps(problem(error, instance=instance, request_id=request_id)),
        status_code=error.status,
        media_type="application/problem+json",
        headers=error.headers,
    )
