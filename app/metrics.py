"""Every metric, declared once."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The gateway's metrics in a registry of their own."""

    def __init__(self, max_labels: int) -> None:
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("tresnet_http_requests", "Requests answered.", ["route", "method", "code"], **make)
        self.duration = Histogram(
            "tresnet_http_request_duration_seconds", "Time to answer.", ["route"], buckets=_SECONDS, **make
        )
        self.stage = Histogram(
            "tresnet_stage_duration_seconds", "Time in each stage.", ["stage"], buckets=_SECONDS, **make
        )
        self.batch_size = Histogram(
            "tresnet_batch_size", "Pictures in a batch sent to Triton.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), **make
        )
        self.images = Counter("tresnet_images", "Pictures answered.", ["route", "model", "status"], **make)
        self.inflight = Gauge("tresnet_inflight_images", "Pictures at Triton.", **make)
        self.queue_depth = Gauge("tresnet_queue_depth_images", "Pictures waiting for a batch.", **make)
        self.rejected = Counter("tresnet_rejected", "Requests refused.", ["reason"], **make)
        self.predictions = Counter("tresnet_predictions", "Top labels given.", ["model", "label"], **make)
        self.top_score = Histogram(
            "tresnet_top_score", "The top label's score.", ["model"], buckets=[i / 10 for i in range(1, 11)], **make
        )
        self.model_info = Gauge(
            "tresnet_model_info",
            "Models that are served; the value is 1.",
            ["model", "version", "arch", "task", "precision", "source_sha256"],
            **make,
        )
        self.triton_up = Gauge("tresnet_triton_up", "Whether Triton answers.", **make)
        self._max_labels = max_labels
        self._labels_seen: dict[str, set[str]] = {}

    def count_prediction(self, model: str, label: str, score: float) -> None:
        """Count a picture's top label; labels past the bound count as ``other``."""
        seen = self._labels_seen.setdefault(model, set())
        if label not in seen:
            if len(seen) < self._max_labels:
                seen.add(label)
            else:
                label = "other"
        self.predictions.labels(model, label).inc()
        self.top_score.labels(model).observe(score)
