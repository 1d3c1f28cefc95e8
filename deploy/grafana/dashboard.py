"""The Grafana dashboard, as code: rows of panels in the order in which an operator looks at them.

Leaves :func:`dashboard_json`; ``deploy/render.py`` writes it to ``dashboards/tresnet.json``, which Grafana provisions.
"""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

_SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
_SERVED = 'route=~"/classify|/tag"'


@dataclass(frozen=True)
class Panel:
    """A title, what it tells, its unit, and its lines: each a legend and a PromQL expression."""

    title: str
    tells: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    is_number: bool = False


def _quantile(quantile: float, metric: str, matchers: str = "", by: str = "le") -> str:
    return f"histogram_quantile({quantile}, sum by ({by}) (rate({metric}_bucket{{{matchers}}}[$__rate_interval])))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Is it well?": (
        Panel("Answered without an error, 6 h", "The objective is 99.9 %.", units.PercentUnit,
              (("", "1 - tresnet:error_ratio:rate6h"),), is_number=True),
        Panel("Answered within 0.5 s, 6 h", "The objective is 99 %.", units.PercentUnit,
              (("", "1 - tresnet:slow_ratio:rate6h"),), is_number=True),
        Panel("Gateways that reach Triton", "All of them should.", units.Short,
              (("", "sum(tresnet_triton_up)"),), is_number=True),
        Panel("Models served", "Versions that are live at any gateway.", units.Short,
              (("", "count(max by (model, version) (tresnet_model_info) > 0)"),), is_number=True),
    ),
    "Requests": (
        Panel("Requests", "By route and status.", units.RequestsPerSecond,
              (("{{route}} {{code}}",
                f"sum by (route, code) (rate(tresnet_http_requests_total{{{_SERVED}}}[$__rate_interval]))"),)),
        Panel("Time to answer", "Half, 95 and 99 of a hundred requests are answered within.", units.Seconds,
              tuple((f"{q:.0%}", _quantile(q, "tresnet_http_request_duration_seconds", _SERVED))
                    for q in (0.5, 0.95, 0.99))),
        Panel("Refused", "Why requests were turned away at the door.", units.RequestsPerSecond,
              (("{{reason}}", "sum by (reason) (rate(tresnet_rejected_total[$__rate_interval]))"),)),
        Panel("Error ratio by window", "What the burn-rate alerts look at.", units.PercentUnit,
              tuple((w, f"tresnet:error_ratio:rate{w}") for w in ("5m", "30m", "1h", "6h"))),
    ),
    "Where the time goes": (
        Panel("Stages, 95 %", "Decode is the gateway's CPU, queue the wait for a batch, infer Triton.", units.Seconds,
              (("{{stage}}", _quantile(0.95, "tresnet_stage_duration_seconds", by="le, stage")),)),
        Panel("Pictures waiting and at Triton", "Waiting that does not go away: more Tritons.", units.Short,
              (("waiting", "sum(tresnet_queue_depth_images)"), ("at Triton", "sum(tresnet_inflight_images)"))),
        Panel("Pictures in a batch", "Grows with the load by itself.", units.Short,
              (("mean", "sum(rate(tresnet_batch_size_sum[$__rate_interval]))"
                        " / (sum(rate(tresnet_batch_size_count[$__rate_interval])) > 0)"),
               ("95%", _quantile(0.95, "tresnet_batch_size")))),
        Panel("Pictures answered", "By model and outcome.", units.Short,
              (("{{model}} {{status}}", "sum by (model, status) (rate(tresnet_images_total[$__rate_interval]))"),)),
    ),
    "Triton": (
        Panel("Compute time of a request", "Triton's own measure, by model; a request is a batch.", units.Seconds,
              (("{{model}}", "sum by (model) (rate(nv_inference_compute_infer_duration_us[$__rate_interval])) / 1e6"
                             " / (sum by (model) (rate(nv_inference_request_success[$__rate_interval])) > 0)"),)),
        Panel("Queue time of a request", "Waits inside Triton, behind batches of other gateways.", units.Seconds,
              (("{{model}}", "sum by (model) (rate(nv_inference_queue_duration_us[$__rate_interval])) / 1e6"
                             " / (sum by (model) (rate(nv_inference_request_success[$__rate_interval])) > 0)"),)),
        Panel("Failed in Triton", "By model and Triton: one that fails alone has a fault of its own.",
              units.RequestsPerSecond,
              (("{{model}} {{instance}} {{pod}}",
                "sum by (model, instance, pod) (rate(nv_inference_request_failure[$__rate_interval]))"),)),
        Panel("GPU", "Empty where Triton runs on the CPU.", units.PercentUnit,
              (("busy {{gpu_uuid}}", "avg by (gpu_uuid) (nv_gpu_utilization)"),
               ("memory {{gpu_uuid}}",
                "avg by (gpu_uuid) (nv_gpu_memory_used_bytes) / avg by (gpu_uuid) (nv_gpu_memory_total_bytes)"))),
    ),
    "What it answers": (
        Panel("Labels", "The ten top labels given most.", units.Short,
              (("{{model}} {{label}}",
                "topk(10, sum by (model, label) (rate(tresnet_predictions_total[$__rate_interval])))"),)),
        Panel("Top score, mean over an hour", "A fall: the pictures are not those of training.", units.PercentUnit,
              (("{{model}}", "tresnet:top_score:mean1h"),)),
        Panel("Shift of labels against the day before", "0 is the same mix, 1 has none in common.", units.PercentUnit,
              (("{{model}}", "tresnet:label_shift:ratio"),)),
        Panel("Time of a scrape", "A gateway that is slow here is short of CPU.", units.Seconds,
              (("{{instance}}", 'scrape_duration_seconds{job=~".*tresnet-gateway"}'),)),
    ),
}  # fmt: skip


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard, with Grafana's interval variable filled in."""
    found = [line for row in ROWS.values() for panel in row for _, line in panel.lines]
    return [expression.replace("$__rate_interval", "1m") for expression in found]


def dashboard_json() -> str:
    board = (
        dashboard.Dashboard("TResNet Serving")
        .uid("tresnet")
        .tags(["tresnet"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
    )
    for title, panels in ROWS.items():
        board = board.with_row(dashboard.Row(title))
        for panel in panels:
            board = board.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    built = (
        stat.Panel().height(5).span(6)
        if panel.is_number
        else timeseries.Panel().height(8).span(12).min(0).legend(common.VizLegendOptions().show_legend(True))
    )
    built = built.title(panel.title).description(panel.tells).unit(panel.unit).datasource(_SOURCE)
    for legend, expression in panel.lines:
        built = built.with_target(prometheus.Dataquery().expr(expression).legend_format(legend))
    return built
