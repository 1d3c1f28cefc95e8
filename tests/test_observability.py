"""Logs, traces and metrics: what an operator sees of a request."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from collector import Span
from conftest import Guarded, needs, until

CLOCK_NS = 2_000_000  # the queue's time is measured in whole milliseconds
PROMTOOL = shutil.which("promtool") or str(Path(__file__).parents[1] / ".venv/deploy/bin/promtool")


def classify(guarded: Guarded, files: list[bytes], **headers: str) -> httpx.Response:
    parts = [("image", (str(i), file)) for i, file in enumerate(files)]
    headers = {"X-API-Key": guarded.key, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.post(f"{guarded.url}/classify", files=parts, headers=headers, timeout=30)


def lines(guarded: Guarded) -> list[dict[str, Any]]:
    return [json.loads(line) for line in guarded.log().splitlines()]


def test_a_request_leaves_one_line(guarded: Guarded, digit_files: list[bytes]) -> None:
    trace_id = 31 * "0" + "7"
    headers = {"x_request_id": "log-1", "traceparent": f"00-{trace_id}-{16 * '1'}-00"}
    answer = classify(guarded, [digit_files[0], b"no picture"], **headers)
    assert answer.status_code == 200
    until(lambda: "log-1" in guarded.log())
    (line,) = [line for line in lines(guarded) if line.get("request_id") == "log-1"]
    timing = dict(entry.split(";dur=") for entry in answer.headers["server-timing"].split(", "))
    assert line["time"].endswith("+00:00")
    expected = {"level": "INFO", "message": "request", "method": "POST", "route": "/classify", "status": 200}
    expected |= {"code": "ok", "model": "digits", "version": "1", "images": 2, "failed": 1}
    expected |= {"key": "alice", "trace_id": trace_id, "client": "127.0.0.1"}
    assert expected.items() <= line.items()
    for stage in ("decode", "queue", "infer"):
        assert line[f"{stage}_ms"] == pytest.approx(float(timing[stage]), abs=0.011)
    assert line["total_ms"] >= float(timing["total"])


def test_failures_have_their_line_and_probes_have_none(guarded: Guarded) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        httpx.get(guarded.url + path, headers={"X-Request-ID": "probe"})
    key = {"X-API-Key": guarded.key}
    httpx.post(f"{guarded.url}/classify?top_k=-1", content=b"x", headers={**key, "X-Request-ID": "bad"})
    httpx.get(f"{guarded.url}/nowhere", headers={**key, "X-Request-ID": "lost"})
    until(lambda: '"lost"' in guarded.log())
    found = {line["request_id"]: line for line in lines(guarded) if line.get("request_id") in ("probe", "bad", "lost")}
    assert "probe" not in found
    assert [found["bad"][name] for name in ("route", "status", "code")] == ["/classify", 422, "bad_parameter"]
    assert [found["lost"][name] for name in ("route", "status", "code")] == ["unknown", 404, "not_found"]
    assert {"uvicorn.error", "app.model_watch", "app.bundled_triton"} <= {line["logger"] for line in lines(guarded)}


def test_a_request_is_one_trace_from_the_client_into_triton(guarded: Guarded, digit_files: list[bytes]) -> None:
    caller = 16 * "b"
    for attempt in range(1, 5):  # Triton does not repeat what it failed to send
        trace_id = f"{attempt:032x}"
        assert classify(guarded, digit_files[:2], traceparent=f"00-{trace_id}-{caller}-01").status_code == 200
        request, stages = traced_request(guarded, trace_id)
        assert request.parent_id == caller
        inferring = {span.span_id for span in stages if span.name == "infer"}
        with suppress(TimeoutError):
            until(lambda: bool(triton_spans(guarded, trace_id)), seconds=15)  # noqa: B023
            break
    parents = {span.parent_id for span in triton_spans(guarded, trace_id) if span.name == "InferRequest"}
    assert parents
    assert parents <= inferring


def traced_request(guarded: Guarded, trace_id: str) -> tuple[Span, list[Span]]:
    """The request's span and those below it, checked to be a whole of two pictures."""

    def gateway_spans() -> list[Span]:
        return [span for span in guarded.collector.trace(trace_id) if span.service == "tresnet-gateway"]

    until(lambda: len(gateway_spans()) >= 9)
    [request] = [span for span in gateway_spans() if span.name == "POST /classify"]
    stages = [span for span in gateway_spans() if span is not request]
    assert sorted(span.name for span in stages) == sorted(2 * ["decode", "queue", "infer", "postprocess"])
    for span in stages:
        assert span.parent_id == request.span_id
        assert request.start_ns - CLOCK_NS <= span.start_ns <= span.end_ns <= request.end_ns + CLOCK_NS
    return request, stages


def triton_spans(guarded: Guarded, trace_id: str) -> list[Span]:
    return [span for span in guarded.collector.trace(trace_id) if span.service == "triton"]


def test_an_unsampled_or_broken_context_is_not_an_error(guarded: Guarded, digit_files: list[bytes]) -> None:
    unsampled = 32 * "c"
    assert classify(guarded, digit_files[:1], traceparent=f"00-{unsampled}-{16 * 'b'}-00").status_code == 200
    for broken in ("00-zz", f"00-{32 * '0'}-{16 * 'b'}-01", "é", ""):
        headers = {"X-API-Key": guarded.key, "traceparent": broken.encode()}
        answer = httpx.post(f"{guarded.url}/classify", content=digit_files[0], headers=headers)
        assert answer.status_code == 200
    sampled = 32 * "d"
    assert classify(guarded, digit_files[:1], traceparent=f"00-{sampled}-{16 * 'b'}-01").status_code == 200
    until(lambda: len(guarded.collector.trace(sampled)) >= 5)
    assert not [span for span in guarded.collector.trace(unsampled) if span.service == "tresnet-gateway"]


def test_metrics_are_clean(guarded: Guarded, digit_files: list[bytes]) -> None:
    assert classify(guarded, digit_files[:1]).status_code == 200
    exposed = httpx.get(f"{guarded.url}/metrics")
    assert exposed.headers["content-type"].startswith("text/plain; version=")
    needs(PROMTOOL)
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=exposed.content, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_tritons_own_metrics_stand_beside(guarded: Guarded) -> None:
    text = httpx.get(guarded.triton_metrics_url).text
    assert 'nv_inference_request_success{model="digits",version="1"}' in text
