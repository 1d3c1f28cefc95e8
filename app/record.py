"""What is known of one request while it is answered; it ends as ``Server-Timing`` and as its line in the log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StageTimes:
    """Seconds of the slowest picture of a request in each stage."""

    started: float = field(default_factory=time.perf_counter)
    fetch: float = 0.0
    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0

    def raise_to(self, stage: str, seconds: float) -> None:
        setattr(self, stage, max(getattr(self, stage), seconds))

    def header(self) -> str:
        total = time.perf_counter() - self.started
        stages = {"decode": self.decode, "queue": self.queue, "infer": self.infer, "total": total}
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items())


@dataclass
class RequestRecord:
    """Filled in by whoever learns it; names and numbers alone, no picture and no secret."""

    request_id: str
    client: str | None = None
    traceparent: str | None = None
    key: str | None = None  # the name of the caller's API key
    model: str | None = None
    version: str | None = None
    images: int = 0
    failed: int = 0
    code: str = "ok"
    span: Any = None  # the request's, while traces are on
    times: StageTimes = field(default_factory=StageTimes)

    def fields(self, *, method: str, route: str, status: int) -> dict[str, Any]:
        """The log line's fields."""
        times = self.times
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "method": method,
            "route": route,
            "status": status,
            "code": self.code,
            "total_ms": _ms(time.perf_counter() - times.started),
        }
        if self.images:
            fields |= {"model": self.model, "version": self.version, "images": self.images, "failed": self.failed}
            fields |= {"decode_ms": _ms(times.decode), "queue_ms": _ms(times.queue), "infer_ms": _ms(times.infer)}
        if times.fetch:
            fields["fetch_ms"] = _ms(times.fetch)
        if self.key is not None:
            fields["key"] = self.key
        if self.traceparent is not None:
            fields["trace_id"] = self.traceparent[3:35]
        fields["client"] = self.client
        return fields


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
