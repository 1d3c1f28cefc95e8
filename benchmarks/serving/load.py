"""Load: wrk as a closed loop for throughput, k6 as an open one for latency at a rate that is given.

k6 costs several times what wrk does, and on a small machine it takes that from the server. So a share of a server's
capacity is offered by k6 as a share of what k6 itself can get answered.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.contestants import PEERS_BIN

_LUA = Path(__file__).with_name("post.lua")
_K6 = Path(__file__).with_name("load.js")
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


@dataclass(frozen=True)
class Load:
    """What a load generator saw. ``failed`` counts what was not answered with 200."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    requests: int
    failed: int


def closed_loop(url: str, body: Path, content_type: str, connections: int, seconds: float) -> Load:
    """As many requests as ``connections`` clients get answered, each asking again at once."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", "--latency",
               "-s", str(_LUA), url]  # fmt: skip
    environment = {"BODY": str(body), "CONTENT_TYPE": content_type, "PATH": "/usr/bin:/bin"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout  # noqa: S603
    return read_wrk(said)


def read_wrk(said: str) -> Load:
    """What wrk printed, with --latency."""
    requests = int(_find(r"(\d+) requests in", said))
    failed = int(_find(r"Non-2xx or 3xx responses: (\d+)", said, "0"))
    failed += sum(int(count) for count in re.findall(r"(?:connect|read|write|timeout) (\d+)", said))
    return Load(
        float(_find(r"Requests/sec:\s+([\d.]+)", said)), _milliseconds("50%", said), _milliseconds("99%", said),
        requests, failed,
    )  # fmt: skip


def open_loop(url: str, body: Path, content_type: str, rate: float, seconds: float) -> Load:
    """``rate`` requests a second, whether or not those before were answered: waiting shows."""
    return _k6(url, body, content_type, seconds, {"RATE": str(max(1, round(10 * rate)))})


def closed_loop_of_k6(url: str, body: Path, content_type: str, connections: int, seconds: float) -> Load:
    """:func:`closed_loop`, by the generator of :func:`open_loop`: the highest rate that it can drive."""
    return _k6(url, body, content_type, seconds, {"CONNECTIONS": str(connections)})


def _k6(url: str, body: Path, content_type: str, seconds: float, scenario: dict[str, str]) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.json"
        environment = {
            "URL": url, "BODY": str(body), "CONTENT_TYPE": content_type, "HOME": folder,
            "SECONDS": str(max(1, round(seconds))), **scenario,
        }  # fmt: skip
        command = [str(PEERS_BIN / "k6"), "run", "--quiet", "--summary-export", str(summary), str(_K6)]
        subprocess.run(command, env=environment, capture_output=True, check=True)  # noqa: S603
        figures = json.loads(summary.read_text())["metrics"]
    duration, count = figures["http_req_duration"], int(figures["http_reqs"]["count"])
    dropped = int(figures.get("dropped_iterations", {}).get("count", 0))
    failed = round(count * float(figures["http_req_failed"]["value"])) + dropped
    return Load(count / seconds, duration["med"], duration["p(99)"], count, failed)


def _milliseconds(share: str, said: str) -> float:
    value, unit = re.search(rf"{share}\s+([\d.]+)(us|ms|s|m)", said).groups()  # type: ignore[union-attr]
    return float(value) * _UNITS[unit]


def _find(pattern: str, text: str, default: str | None = None) -> str:
    found = re.search(pattern, text)
    if found is None:
        if default is None:
            raise RuntimeError(f"wrk said: {text}")
        return default
    return found.group(1)
