"""Hours of mixed clients against one gateway: nothing answered wrongly, no 500, nothing that grows.

Starts ``tresnet serve`` over a model repository that has a model for /classify, sends it good, hostile, slow and
vanishing clients, and samples memory, file descriptors and threads of the gateway and of all its children. Prints the
slopes after warm-up; the exit status is 1 if anything was wrong or grew.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import httpx

_SAMPLE_EVERY_S = 5.0
_WARM_UP = 0.25
_PAUSES_S = {"good": 0.05, "several": 0.2}
_PAUSE_S = 0.4
_IN_TIME = (200, 503, 504)
"""What a good request may get on a machine that is too busy; most must be 200 all the same."""
_LEAST_SERVED = 0.9
_SCORE_TOLERANCE = 1e-3
_MAX_GROWTH = {"gateway_mib": 8.0, "children_mib": 8.0, "file_descriptors": 8.0, "threads": 4.0}
"""From the first third after warm-up to the last third, medians; memory may also grow by 3 %."""


@dataclass
class Seen:
    """What the clients got, and what they should not have got."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, status: object, fault: str | None = None) -> None:
        with self.lock:
            self.outcomes[f"{kind} {status}"] += 1
            if fault is not None:
                self.wrong.append(f"{kind}: {fault}")


@dataclass(frozen=True)
class Clients:
    """Each method is one visit of one kind of client."""

    url: str
    picture: bytes
    right: dict[str, float]
    seen: Seen

    def good(self, client: httpx.Client) -> None:
        answer = client.post(f"{self.url}/classify?top_k=1000", content=self.picture)
        self._judge("good", answer, [0] if answer.status_code == 200 else [])

    def several(self, client: httpx.Client) -> None:
        """A bad picture among good ones fails alone."""
        encoded = base64.b64encode(self.picture).decode()
        images = [{"id": "a", "b64": encoded}, {"id": "b", "b64": "bm8="}, {"id": "c", "b64": encoded}]
        answer = client.post(f"{self.url}/classify", json={"images": images, "parameters": {"top_k": 1000}})
        self._judge("several", answer, [0, 2] if answer.status_code == 200 else [])
        if answer.status_code == 200 and answer.json()["results"][1].get("status") != "error":
            self.seen.note("several", "bad picture", "a bad picture was answered")

    def hostile(self, client: httpx.Client) -> None:
        body, expected = random.choice(_hostile_bodies(self.picture))  # noqa: S311
        answer = client.post(f"{self.url}/classify", content=body)
        fault = None if answer.status_code in (expected, 503) else f"{answer.status_code} in place of {expected}"
        self.seen.note("hostile", answer.status_code, fault)

    def wrong_parameters(self, client: httpx.Client) -> None:
        query = random.choice(("top_k=-1", "top_k=x", "model=none", "version=99", "min_score=nan"))  # noqa: S311
        answer = client.post(f"{self.url}/classify?{query}", content=self.picture)
        fault = None if answer.status_code in (404, 422, 503) else f"{answer.status_code} to {query}"
        self.seen.note("wrong parameters", answer.status_code, fault)

    def impatient(self, client: httpx.Client) -> None:
        answer = client.post(f"{self.url}/classify", content=self.picture, headers={"X-Request-Timeout-Ms": "1"})
        fault = None if answer.status_code in (200, 503, 504) else str(answer.status_code)
        self.seen.note("impatient", answer.status_code, fault)

    def vanishing(self, client: httpx.Client) -> None:
        """Leaves in the middle of the body, or before the answer."""
        whole = random.random() < 0.5  # noqa: S311
        with self._connection() as connection:
            connection.sendall(self._request())
            connection.sendall(self.picture if whole else self.picture[: len(self.picture) // 2])
        self.seen.note("vanishing", "after the body" if whole else "in the body")

    def slow(self, client: httpx.Client) -> None:
        """Sends the body in pieces, over two seconds, and waits for its answer."""
        with self._connection() as connection:
            connection.sendall(self._request())
            step = max(1, len(self.picture) // 8)
            for start in range(0, len(self.picture), step):
                connection.sendall(self.picture[start : start + step])
                time.sleep(0.25)
            status = connection.recv(100).split(b" ")[1].decode()
        self.seen.note("slow", status, None if int(status) in _IN_TIME else f"slow client got {status}")

    def watcher(self, client: httpx.Client) -> None:
        for path in ("/readyz", "/metrics", "/models", "/nothing"):
            answer = client.get(f"{self.url}{path}")
            self.seen.note("watcher", answer.status_code, path if answer.status_code in (500, 502) else None)

    def _connection(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=60)

    def _request(self) -> bytes:
        return f"POST /classify HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(self.picture)}\r\n\r\n".encode()

    def _judge(self, kind: str, answer: httpx.Response, pictures: list[int]) -> None:
        fault = None if answer.status_code in _IN_TIME else answer.text[:200]
        for index in pictures:
            got = {entry["label"]: entry["score"] for entry in answer.json()["results"][index]["predictions"]}
            if max(abs(got.get(label, 9.0) - score) for label, score in self.right.items()) > _SCORE_TOLERANCE:
                fault = f"wrong scores {got}"
        self.seen.note(kind, answer.status_code, fault)


def _hostile_bodies(picture: bytes) -> list[tuple[bytes, int]]:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return [
        (b"plain text", 422),
        (b"", 400),
        (picture[: len(picture) // 2], 422),
        (bytes(picture[:30]) + os.urandom(2000), 422),
        (bomb, 413),
        (b"\0" * (33 * 2**20), 413),
    ]


@dataclass(frozen=True)
class Sample:
    """Resident memory of the gateway, and of its children; the rest of them together."""

    at_s: float
    gateway_mib: float
    children_mib: float
    file_descriptors: int
    threads: int


def sample(root: int, started: float) -> Sample:
    memory: dict[int, int] = {}
    descriptors = threads = 0
    for pid in _family(root):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            descriptors += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
        values = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if len(line.split()) > 1}
        memory[pid] = int(values.get("VmRSS", 0))
        threads += int(values.get("Threads", 0))
    gateway = memory.pop(root, 0)
    return Sample(time.monotonic() - started, gateway / 1024, sum(memory.values()) / 1024, descriptors, threads)


def _family(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    family = [root]
    for parent in family:  # grows as it is walked
        family += [pid for pid, its_parent in parents.items() if its_parent == parent]
    return family


def growth(samples: list[Sample], what: str) -> tuple[float, float, float]:
    """Median in the first third, in the last third, and the slope an hour between their middles."""
    third = max(1, len(samples) // 3)
    first, last = samples[:third], samples[-third:]
    before, after = (statistics.median(getattr(one, what) for one in part) for part in (first, last))
    hours = (statistics.mean(one.at_s for one in last) - statistics.mean(one.at_s for one in first)) / 3600
    return before, after, (after - before) / hours


def soak(url: str, root: int, picture: bytes, minutes: float) -> tuple[Seen, list[Sample]]:
    answer = httpx.post(f"{url}/classify?top_k=1000", content=picture, timeout=60).raise_for_status().json()
    right = {entry["label"]: entry["score"] for entry in answer["results"][0]["predictions"]}
    clients = Clients(url, picture, right, Seen())
    started = time.monotonic()
    is_over = threading.Event()

    def repeat(visit: Callable[[httpx.Client], None]) -> None:
        while not is_over.is_set():
            with httpx.Client(timeout=100) as client:
                for _ in range(50):
                    try:
                        visit(client)
                    except (httpx.HTTPError, OSError, IndexError) as error:
                        # A refusal may come, and the connection go, while a large body is still being sent.
                        is_fault = visit.__name__ != "hostile" or isinstance(error, httpx.TimeoutException)
                        clients.seen.note(visit.__name__, type(error).__name__, repr(error) if is_fault else None)
                    if is_over.wait(_PAUSES_S.get(visit.__name__, _PAUSE_S)):
                        return

    kinds = [clients.good] * 4 + [
        clients.several, clients.hostile, clients.hostile, clients.wrong_parameters, clients.impatient,
        clients.vanishing, clients.vanishing, clients.slow, clients.slow, clients.slow, clients.watcher,
    ]  # fmt: skip
    threads = [threading.Thread(target=repeat, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    samples: list[Sample] = []
    try:
        while time.monotonic() - started < 60 * minutes:
            time.sleep(_SAMPLE_EVERY_S)
            samples.append(sample(root, started))
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    return clients.seen, [one for one in samples if one.at_s > _WARM_UP * 60 * minutes]


def report(seen: Seen, samples: list[Sample], minutes: float) -> tuple[str, bool]:
    lines = [
        f"# Soak, {date.today().isoformat()}",
        "",
        f"`SOAK_MINUTES={minutes:g} make soak`, {os.cpu_count()} cores, {platform.platform()}.",
        f"{sum(seen.outcomes.values())} visits; {len(seen.wrong)} wrong. The gateway and its children together,",
        f"medians of the first and the last third after {_WARM_UP:.0%} warm-up:",
        "",
        "| | first | last | slope an hour | flat |",
        "|---|---|---|---|---|",
    ]
    served = seen.outcomes["good 200"] / max(1, sum(n for what, n in seen.outcomes.items() if what.startswith("good ")))
    is_good = not seen.wrong and served > _LEAST_SERVED
    for what, most in _MAX_GROWTH.items():
        before, after, slope = growth(samples, what)
        is_flat = after - before <= (max(most, 0.03 * before) if what.endswith("_mib") else most)
        is_good = is_good and is_flat
        lines.append(f"| {what} | {before:.1f} | {after:.1f} | {slope:+.1f} | {'yes' if is_flat else 'NO'} |")
    lines += ["", f"Good requests answered with 200: {served:.1%}.", "", "| visit and outcome | times |", "|---|---|"]
    lines += [f"| {outcome} | {count} |" for outcome, count in sorted(seen.outcomes.items())]
    lines += [f"- WRONG: {fault}" for fault in seen.wrong[:20]]
    return "\n".join(lines) + "\n", is_good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--repository", default="model_repository")
    parser.add_argument("--picture", type=Path, default=Path("examples/digit-7.png"))
    parser.add_argument("--write", type=Path, help="write the report here, too")
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tool = str(Path(sys.executable).with_name("tresnet"))
    gateway = subprocess.Popen([tool, "serve", "--port", str(port), "--repository", given.repository])  # noqa: S603
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_ready(url, gateway)
        seen, samples = soak(url, gateway.pid, given.picture.read_bytes(), given.minutes)
    finally:
        gateway.send_signal(signal.SIGTERM)
        gateway.wait(100)
    text, is_good = report(seen, samples, given.minutes)
    sys.stdout.write(text)
    sys.stdout.write(json.dumps({"good": is_good, "wrong": len(seen.wrong)}) + "\n")
    if given.write is not None:
        given.write.write_text(text, encoding="utf-8")
    sys.exit(0 if is_good else 1)


def _wait_ready(url: str, gateway: subprocess.Popen[bytes]) -> None:
    while gateway.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    sys.exit("the gateway did not start")


if __name__ == "__main__":
    main()
