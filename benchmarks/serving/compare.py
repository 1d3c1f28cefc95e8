"""The comparison: the same TorchScript file behind this project and behind what people use instead, in turns.

All servers of a workload are up, and all but the one that is measured are stopped by SIGSTOP. Every round measures each
of them once, and the program alone, so that a machine's moods meet all; medians over the rounds count, and ratios
within a round. What is under way when a turn ends is not counted, with any server: up to one request a connection, so
a turn must be long against an answer before it says anything about the program alone.
"""

from __future__ import annotations

import base64
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.serving.contestants import CONTESTANTS, OURS, ROOT, Contestant, Running, start
from benchmarks.serving.load import Load, closed_loop, closed_loop_of_k6, open_loop
from benchmarks.serving.models import MAX_BATCH_SIZE, bare_images_per_s, build_model
from benchmarks.serving.pictures import write_picture
from tresnet.devices import native_precision
from tresnet.terms import Precision

WORK = ROOT / "runs" / "bench"
CONNECTIONS = 16
SHARE_OF_CAPACITY = 0.7
_LATENCY_ROUNDS = 3
_BOUNDARY = "bench-0123456789"
NATIVE = "ours, bf16"


@dataclass(frozen=True)
class Workload:
    """What is asked of every server."""

    what: str
    kind: str
    image_size: int
    picture: str
    pictures_a_request: int = 1
    native: Precision | None = None
    """A second precision in which this project serves the model too, on a machine that computes in it."""


WORKLOADS = {
    "a": Workload("TResNet-M at 224 px, 500x375 JPEG", "tresnet_m", 224, "photo", native="bf16"),
    "b": Workload("one convolution at 224 px, 500x375 JPEG", "one_convolution", 224, "photo"),
    "c": Workload("one convolution at 224 px, 12-megapixel JPEG", "one_convolution", 224, "12mp"),
    "d": Workload("one convolution at 224 px, eight 500x375 JPEG a request", "one_convolution", 224, "photo", 8),
    "e": Workload("TResNet-M at 448 px, 800x600 JPEG", "tresnet_m", 448, "large"),
}


@dataclass
class Row:
    """One server's figures in one workload; lists are by round."""

    name: str
    requests_per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_ms_per_image: list[dict[str, float]] = field(default_factory=list)
    peak_mib: float = 0.0
    failed: int = 0
    at_70_percent: dict[str, float] = field(default_factory=dict)
    """Latency at ``SHARE_OF_CAPACITY`` of its own, by the generator that then offers it."""
    at_best_peers_rate: dict[str, float] = field(default_factory=dict)
    """Latency at that share of the best peer's capacity; of this project alone."""

    @property
    def median_requests_per_s(self) -> float:
        return statistics.median(self.requests_per_s)


def compare(
    key: str, *, names: list[str], rounds: int, seconds: float, latency: bool, tell: Callable[[str], None]
) -> dict[str, object]:
    """Measure workload ``key``; the figures as plain values."""
    work = WORKLOADS[key]
    servers = _start_all(work, names, tell)
    rows = {name: Row(name) for name in servers}
    files = {precision: model_file(work, precision) for precision in _precisions(work)}
    bare: dict[Precision, list[float]] = {precision: [] for precision in files}
    try:
        for turn in range(rounds):
            for name, running in servers.items():
                tell(f"({key}) {name}: round {turn + 1} of {rounds}")
                _measure(running, rows[name], work, seconds)
            for precision, path in files.items():
                tell(f"({key}) the {precision} program alone: round {turn + 1} of {rounds}")
                bare[precision].append(bare_images_per_s(path, work.image_size, seconds=seconds))
        if latency:
            _measure_latency(key, servers, rows, work, seconds, tell)
    finally:
        for running in servers.values():
            running.stop()
    return {
        "workload": {"key": key, **asdict(work), "connections": CONNECTIONS, "max_batch_size": MAX_BATCH_SIZE},
        "bare_model_images_per_s": {key: round(statistics.median(rates), 1) for key, rates in bare.items()},
        "bare_model_by_round": {key: [round(rate, 2) for rate in rates] for key, rates in bare.items()},
        "rows": [asdict(row) for row in rows.values()],
        "ratios": _ratios(rows, work, bare),
    }


def _start_all(work: Workload, names: list[str], tell: Callable[[str], None]) -> dict[str, Running]:
    servers: dict[str, Running] = {}
    try:
        for name in names:
            tell(f"starting {name}")
            labels = {precision: name if precision == "fp32" else NATIVE for precision in _precisions(work)}
            for precision, label in labels.items():
                if label == NATIVE and name != OURS:
                    continue
                contestant = CONTESTANTS[name]
                body, content_type = request_body(work, contestant)
                route = "/several" if work.pictures_a_request > 1 and name != OURS else "/classify"
                servers[label] = start(
                    contestant, model_file(work, precision), work.image_size, body, content_type, route
                )
                servers[label].pause()
    except BaseException:
        for running in servers.values():
            running.stop()
        raise
    return servers


@contextmanager
def _warm(running: Running, work: Workload, seconds: float) -> Iterator[tuple[str, Path, str]]:
    """Its turn: it runs, and its memory is cold no more. URL, body and type of what it is asked."""
    question = (running.url, *request_body(work, running.contestant))
    with running.awake():
        closed_loop(*question, CONNECTIONS, max(1.0, seconds / 4))
        yield question


def _measure(running: Running, row: Row, work: Workload, seconds: float) -> None:
    with _warm(running, work, seconds) as question:
        before = running.cpu_seconds()
        load = closed_loop(*question, CONNECTIONS, seconds)
        spent = running.cpu_seconds()
        row.peak_mib = max(row.peak_mib, round(running.resident_bytes() / 2**20, 1))
        time.sleep(0.3)  # what is still in flight ends
    images = max(1, (load.requests - load.failed) * work.pictures_a_request)
    row.requests_per_s.append(load.requests_per_s)
    row.p50_ms.append(load.p50_ms)
    row.p99_ms.append(load.p99_ms)
    row.failed += load.failed
    row.cpu_ms_per_image.append(
        {kind: round(1000 * (spent[kind] - before.get(kind, 0.0)) / images, 3) for kind in spent}
    )


def _measure_latency(
    key: str,
    servers: dict[str, Running],
    rows: dict[str, Row],
    work: Workload,
    seconds: float,
    tell: Callable[[str], None],
) -> None:
    """Each server at a share of its own capacity, and ours at that share of the best peer's, in turns."""
    capacities: dict[str, list[float]] = {name: [] for name in servers}
    for turn in range(_LATENCY_ROUNDS):
        for name, running in servers.items():
            tell(f"({key}) {name}: capacity, round {turn + 1} of {_LATENCY_ROUNDS}")
            with _warm(running, work, seconds) as question:
                capacities[name].append(closed_loop_of_k6(*question, CONNECTIONS, seconds).requests_per_s)
    shares = {name: SHARE_OF_CAPACITY * statistics.median(rates) for name, rates in capacities.items()}
    asked = [(name, rate, rows[name].at_70_percent) for name, rate in shares.items()]
    if OURS in rows and (peers := _peers(rows)):
        asked.append((OURS, max(shares[name] for name in peers), rows[OURS].at_best_peers_rate))
    loads: list[list[Load]] = [[] for _ in asked]
    for turn in range(_LATENCY_ROUNDS):
        for (name, rate, _), found in zip(asked, loads, strict=True):
            tell(f"({key}) {name}: latency at {rate:.0f} requests/s, round {turn + 1} of {_LATENCY_ROUNDS}")
            with _warm(servers[name], work, seconds) as question:
                found.append(open_loop(*question, rate, 2 * seconds))
    for (_, rate, figures), found in zip(asked, loads, strict=True):
        figures |= {
            "requests_per_s": round(rate, 1),
            "p50_ms": round(statistics.median(load.p50_ms for load in found), 1),
            "p99_ms": round(statistics.median(load.p99_ms for load in found), 1),
            "failed": sum(load.failed for load in found),
        }


def _ratios(rows: dict[str, Row], work: Workload, bare: dict[Precision, list[float]]) -> dict[str, float]:
    """Ours to each peer, to the best one and to the program alone: medians of the ratios within a round."""
    if OURS not in rows:
        return {}
    peers = _peers(rows)

    def against(own: Row, other: list[float]) -> float:
        return round(statistics.median(a / max(b, 1e-9) for a, b in zip(own.requests_per_s, other, strict=True)), 3)

    ratios = {f"{OURS} / {name}": against(rows[OURS], row.requests_per_s) for name, row in peers.items()}
    if peers:
        best = max(peers.values(), key=lambda row: row.median_requests_per_s)
        for name in (OURS, NATIVE):
            if name in rows:
                ratios[f"{name} / best peer ({best.name})"] = against(rows[name], best.requests_per_s)
    for (precision, alone), name in zip(bare.items(), (OURS, NATIVE), strict=False):
        asked = [rate / work.pictures_a_request for rate in alone]
        ratios[f"{name} / bare model in {precision}"] = against(rows[name], asked)
    return ratios


def _peers(rows: dict[str, Row]) -> dict[str, Row]:
    return {name: row for name, row in rows.items() if name not in (OURS, NATIVE)}


def _precisions(work: Workload) -> list[Precision]:
    return ["fp32", work.native] if work.native and work.native == native_precision() else ["fp32"]


def model_file(work: Workload, precision: Precision) -> Path:
    return build_model(work.kind, work.image_size, precision, WORK / f"{work.kind}-{work.image_size}-{precision}")


def request_body(work: Workload, contestant: Contestant) -> tuple[Path, str]:
    """The request's body as a file, in the form that the server takes, and its type."""
    picture = write_picture(work.picture, WORK / "pictures")
    if work.pictures_a_request > 1:
        body = picture.with_suffix(f".{work.pictures_a_request}.json")
        encoded = base64.b64encode(picture.read_bytes()).decode()
        body.write_text(json.dumps({"images": [{"b64": encoded}] * work.pictures_a_request}))
        return body, "application/json"
    if not contestant.multipart:
        return picture, "image/jpeg"
    body = picture.with_suffix(".multipart")
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
    head += "Content-Type: image/jpeg\r\n\r\n"
    body.write_bytes(head.encode() + picture.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode())
    return body, f"multipart/form-data; boundary={_BOUNDARY}"
