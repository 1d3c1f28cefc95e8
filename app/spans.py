"""Traces by OpenTelemetry's SDK, sent by OTLP. Where to, how, and how many: its standard ``OTEL_*`` variables."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

import tresnet
from app.record import RequestRecord
from app.tracing import Tracing, sends_by_grpc

_FLUSH_TIMEOUT_S = 3.0


class Spans(Tracing):
    """A span a request (server), and under it one for each picture's fetch, decode, queue, infer and postprocess."""

    def __init__(self) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter()))
        self._tracer = self._provider.get_tracer("tresnet.gateway", tresnet.__version__)

    def begin(self, record: RequestRecord) -> None:
        span = self._tracer.start_span("request", _context(record.traceparent, is_remote=True), SpanKind.SERVER)
        record.span, record.traceparent = span, _traceparent(span)

    def end(self, record: RequestRecord, *, method: str, route: str, status: int) -> None:
        span: Span | None = record.span
        if span is None:
            return
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "tresnet.request_id": record.request_id,
                "tresnet.images": record.images,
                "tresnet.images_failed": record.failed,
            }
        )
        for name, value in (("model", record.model), ("version", record.version), ("key", record.key)):
            if value is not None:
                span.set_attribute(f"tresnet.{name}", value)
        if status >= 400:
            span.set_attribute("error.type", record.code)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR, record.code))
        span.end()

    def stage(self, record: RequestRecord, name: str, started: float, seconds: float) -> None:
        began_ns = time.time_ns() - int((time.perf_counter() - started) * 1e9)
        span = self._tracer.start_span(name, _context(record.traceparent), start_time=began_ns)
        span.end(began_ns + int(seconds * 1e9))

    @contextmanager
    def infer(self, traceparents: Sequence[str | None]) -> Iterator[str | None]:
        spans = [
            self._tracer.start_span(
                "infer", _context(parent), SpanKind.CLIENT, {"tresnet.batch_size": len(traceparents)}
            )
            for parent in traceparents
            if parent is not None
        ]
        sampled = next((span for span in spans if span.is_recording()), None)
        try:
            yield _traceparent(sampled) if sampled else next(filter(None, traceparents), None)
        except Exception as error:
            for span in spans:
                span.set_status(Status(StatusCode.ERROR, getattr(error, "code", type(error).__name__)))
            raise
        finally:
            for span in spans:
                span.end()

    def close(self) -> None:
        # The SDK waits longer than a stop should where nobody takes the spans; what is still left then is lost.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_FLUSH_TIMEOUT_S)


def _resource() -> Resource:
    attributes: dict[str, Any] = {SERVICE_VERSION: tresnet.__version__}
    named = os.environ.get("OTEL_SERVICE_NAME") or f"{SERVICE_NAME}=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named:
        attributes[SERVICE_NAME] = "tresnet-gateway"
    return Resource.create(attributes)


def _exporter() -> SpanExporter:
    """OTLP as the standard variables say."""
    if sends_by_grpc():
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter()


def _context(traceparent: str | None, *, is_remote: bool = False) -> Context:
    """The context of a ``traceparent`` whose form was checked when the request came."""
    if traceparent is None:
        return Context()
    _, trace_id, span_id, flags = traceparent.split("-")
    parent = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _traceparent(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
