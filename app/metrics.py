"""Every metric, declared once.

Several processes share their values through files in ``PROMETHEUS_MULTIPROC_DIR`` (prometheus-client's own way), so
that whichever is scraped answers for all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The gateway's metrics in a registry of their own."""

    def __init__(self, max_labels: int) -> None:
        self.registry = CollectorRegistry()
        self._folder = os.environ.get(MULTIPROCESS_DIR)
        if self._folder:
            _forget_the_dead(Path(self._folder))
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
        self.inflight = Gauge("tresnet_inflight_images", "Pictures at Triton.", multiprocess_mode="livesum", **make)
        self.queue_depth = Gauge(
            "tresnet_queue_depth_images", "Pictures waiting for a batch.", multiprocess_mode="livesum", **make
        )
        self.rejected = Counter("tresnet_rejected", "Requests refused.", ["reason"], **make)
        self.predictions = Counter("tresnet_predictions", "Top labels given.", ["model", "label"], **make)
        self.top_score = Histogram(
            "tresnet_top_score", "The top label's score.", ["model"], buckets=[i / 10 for i in range(1, 11)], **make
        )
        self.model_info = Gauge(
            "tresnet_model_info",
            "Models that are served; the value is 1.",
            ["model", "version", "arch", "task", "precision", "source_sha256"],
            multiprocess_mode="livemax",
            **make,
        )
        self.failed_versions = Gauge(
            "tresnet_model_versions_failed",
            "Versions in the repository that are not served because they failed to load or to answer as exported.",
            ["model"],
            multiprocess_mode="livemax",
            **make,
        )
        self.ready = Gauge("tresnet_ready", "Whether every served model answers.", multiprocess_mode="livemin", **make)
        self.triton_up = Gauge("tresnet_triton_up", "Whether Triton answers.", multiprocess_mode="livemin", **make)
        self.keys = Gauge("tresnet_api_keys", "API keys in force.", multiprocess_mode="livemax", **make)
        self.keys_reload_ok = Gauge(
            "tresnet_api_keys_last_reload_successful",
            "Whether the file of API keys could be read when it last changed; 1 where there is none.",
            multiprocess_mode="livemin",
            **make,
        )
        self.keys_reload_ok.set(1)
        self.key_requests = Counter("tresnet_key_requests", "Requests of each API key.", ["key", "code"], **make)
        self.key_images = Counter("tresnet_key_images", "Pictures that each API key sent.", ["key"], **make)
        self.url_fetches = Counter("tresnet_url_fetches", "Pictures fetched by URL.", ["code"], **make)
        self.answer_cache = Counter(
            "tresnet_answer_cache", "Pictures looked up among kept answers.", ["result"], **make
        )
        self._max_labels = max_labels
        self._labels_seen: dict[str, set[str]] = {}
        self._models: set[tuple[str, ...]] = set()
        self._models_failed: set[str] = set()

    def render(self) -> bytes:
        """The exposition text, of all processes together."""
        if not self._folder:
            return generate_latest(self.registry)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone, path=self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(everyone)

    def publish_models(self, models: set[tuple[str, ...]]) -> None:
        """``tresnet_model_info`` of the models that are live now; one that went is removed, or 0 among processes."""
        for gone in self._models - models:
            if self._folder:
                self.model_info.labels(*gone).set(0)
            else:
                self.model_info.remove(*gone)
        for model in models:
            self.model_info.labels(*model).set(1)
        self._models = models

    def publish_failed_versions(self, models: list[str]) -> None:
        """How many versions of each model failed, from a list that names a model once for each."""
        for name in models:
            self._models_failed.add(name)
        for name in self._models_failed:
            self.failed_versions.labels(name).set(models.count(name))

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


def _forget_the_dead(folder: Path) -> None:
    """A process that was killed leaves its live gauges behind; the one that takes its place clears them away."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid, path=str(folder))  # type: ignore[no-untyped-call]
