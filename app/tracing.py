"""Traces: what the request's path calls, whether they are on or not. Off, each call costs next to nothing.

A request's span and those of its stages form one trace, which goes on from the client's ``traceparent`` and into
Triton. :mod:`app.spans` makes them, with the packages of the extra ``tracing``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.record import RequestRecord
from app.settings import Settings
from tresnet.errors import UserError


class Tracing:
    """Traces that are off: the client's ``traceparent`` is passed on as it came."""

    def begin(self, record: RequestRecord) -> None:
        """A request came; from now on, ``record.traceparent`` is its own span."""

    def end(self, record: RequestRecord, *, method: str, route: str, status: int) -> None:
        """It was answered."""

    def stage(self, record: RequestRecord, name: str, started: float, seconds: float) -> None:
        """A stage that is over; ``started`` is on ``time.perf_counter``'s clock."""

    @contextmanager
    def infer(self, traceparents: Sequence[str | None]) -> Iterator[str | None]:
        """While Triton works on a batch of pictures; gives the ``traceparent`` that goes with the call.

        Pictures of several traces may share a batch, and a call carries one context: the first one's.
        """
        yield next(filter(None, traceparents), None)

    def close(self) -> None:
        """Send what is left."""


def create_tracing(settings: Settings) -> Tracing:
    """Traces as the settings want them.

    Raises:
        UserError: if they are on and their packages are missing.
    """
    if not settings.tracing:
        return Tracing()
    try:
        from app.spans import Spans
    except ModuleNotFoundError as error:
        raise UserError(
            f"TRESNET_TRACING is on, and the package {error.name} is missing; in the checkout: "
            "pip install -e '.[tracing]'"
        ) from error
    return Spans()


def sends_by_grpc() -> bool:
    """Whether the standard variables ask for gRPC; else it is HTTP, which is the specification's own default."""
    asked = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    return asked == "grpc"


def triton_trace_options(settings: Settings) -> list[str]:
    """Options that let the bundled Triton send its own spans beside the gateway's; none while traces are off.

    Triton sends by HTTP alone, so there are none either where the standard variables ask for gRPC.
    """
    if not settings.tracing or sends_by_grpc():
        return []
    everywhere = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
    url = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or f"{everywhere.rstrip('/')}/v1/traces"
    wanted = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=1", f"opentelemetry,url={url}",
              "opentelemetry,resource=service.name=triton")  # fmt: skip
    return [f"--trace-config={setting}" for setting in wanted]
