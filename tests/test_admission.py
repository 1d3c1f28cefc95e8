"""What is too much, too slow, or gone: bounded before it costs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from unittest.mock import AsyncMock

import httpx
import pytest
from conftest import Guarded, Server, running_server, until
from starlette.types import Message

from app.admission import Admission
from app.errors import OverloadError
from app.large_answer import PIECE_BYTES, LargeAnswer
from app.settings import Settings

JSON = {"Content-Type": "application/json"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
MAX_BODY, MAX_QUEUE_BYTES, MAX_QUEUE = 2**20, 3 * 2**20, 32


@pytest.fixture(scope="module")
def small_server(models: Path) -> Iterator[Server]:
    """A gateway whose bounds are near, started with as few descriptors as shells give."""
    settings = {
        "max_body_bytes": MAX_BODY,
        "max_queue_bytes": MAX_QUEUE_BYTES,
        "max_queue_images": MAX_QUEUE,
        "max_images": 8,
        "body_timeout_ms": 3000,
        "keep_alive_s": 7,  # not uvicorn's own five
        "overload_status": 429,
        "triton_poll_ms": 60_000,  # a Triton that stands still in a test is not to be noticed meanwhile
    }
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, most), most))
        try:
            running = stack.enter_context(running_server(models, **settings))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        yield running


@contextmanager
def connected(server: Server, *, length: int | None, path: str = "/classify") -> Iterator[socket.socket]:
    """A connection that has sent a request's head; the body is ``length`` bytes, or chunked."""
    host, port = server.url.removeprefix("http://").split(":")
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n".encode())
        yield client


def answer_on(client: socket.socket) -> tuple[int, dict[str, str], dict[str, object]]:
    """Status, headers and document of an answer after which the server closes the connection."""
    received = b""
    while part := client.recv(65536):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body)


def resident_mib(server: Server) -> float:
    [line] = [line for line in Path(f"/proc/{server.process.pid}/status").read_text().split("\n") if "VmRSS" in line]
    return int(line.split()[1]) / 1024


@contextmanager
def triton_stopped(server: Server) -> Iterator[None]:
    """The bundled Triton and its helpers do not run."""
    stopped = [pid for pid in server.descendants() if b"triton" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_retry_after_grows_with_what_is_inside_and_follows_the_rate() -> None:
    now = 0.0
    admission = Admission(1000, 2**30, 503, clock=lambda: now)

    def serve(images: int, seconds: float) -> None:
        nonlocal now
        with admission.admit(images):
            now += seconds

    for _ in range(20):
        serve(10, 1.0)  # 10 a second
    now += 3600  # an idle hour says nothing about the rate
    with admission.admit(50):
        waits = [admission.retry_after_s()]
        with admission.admit(50):
            waits.append(admission.retry_after_s())
            with admission.admit(100):
                waits.append(admission.retry_after_s())
    assert waits == pytest.approx([5, 10, 20], rel=0.01)
    for _ in range(60):
        serve(100, 1.0)
    with admission.admit(1000), pytest.raises(OverloadError) as refused, admission.admit(1):
        pass
    assert refused.value.retry_after_s == pytest.approx(10, rel=0.2)


def test_chunked_body_is_read_to_the_bound_only(small_server: Server) -> None:
    with connected(small_server, length=None) as client:
        sent = 0
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        client.settimeout(15)
        try:
            while sent < 2**29:
                client.sendall(chunk)
                sent += 65536
        except OSError:
            pass
        assert sent < 2**28
    with connected(small_server, length=None) as client:
        for _ in range(MAX_BODY // 65536 + 1):
            client.sendall(chunk)
        status, headers, document = answer_on(client)
    assert (status, document["code"], headers["connection"]) == (413, "body_too_large", "close")


def test_bytes_in_flight_are_bounded(small_server: Server, digit_files: list[bytes]) -> None:
    """Bodies that never end fill the room; the next is refused with Retry-After; room is free again when they leave."""
    held = []
    refused: list[tuple[int, dict[str, str], dict[str, object]]] = []
    for _ in range(MAX_QUEUE_BYTES // MAX_BODY + 1):
        context = connected(small_server, length=MAX_BODY)
        client = context.__enter__()
        held.append((context, client))
        client.sendall(bytes(MAX_BODY - 1))
    with ThreadPoolExecutor(len(held)) as pool:
        refused += pool.map(lambda pair: answer_on(pair[1]), held)
    for context, _ in held:
        context.__exit__(None, None, None)
    codes = [document["code"] for _, _, document in refused]
    assert codes.count("queue_full") >= 1
    assert set(codes) == {"queue_full", "deadline_exceeded"}
    for status, headers, document in refused:
        assert (status, document["status"]) in ((429, 429), (504, 504))
        if status == 429:
            assert int(headers["retry-after"]) >= 1
    assert httpx.post(f"{small_server.url}/classify", content=digit_files[0], timeout=30).status_code == 200


def test_a_byte_a_second_times_out(small_server: Server) -> None:
    started = time.monotonic()
    with connected(small_server, length=1000) as client:
        stop = threading.Event()

        def dribble() -> None:
            while not stop.wait(0.5):
                try:
                    client.sendall(b"x")
                except OSError:
                    return

        sender = threading.Thread(target=dribble)
        sender.start()
        status, _, document = answer_on(client)
        stop.set()
        sender.join()
    assert (status, document["code"]) == (504, "deadline_exceeded")
    assert 2.5 < time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("head", "detail"),
    [
        (b"no request\r\n\r\n", "Invalid HTTP request received."),
        (b"GET / HTTP/1.1\r\nX: ".ljust(2**16 + 1, b"x"), "the head of the request has more than 65,536 bytes"),
    ],
    ids=["malformed", "long"],
)
def test_a_bad_head_gets_a_problem_document(small_server: Server, head: bytes, detail: str) -> None:
    host, port = small_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(head)
        status, headers, document = answer_on(client)
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert (document["code"], document["status"], document["detail"]) == ("malformed_request", 400, detail)


def test_a_dribbled_head_and_an_endless_one_are_cut_off(small_server: Server) -> None:
    host, port = small_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=40) as client:
        client.sendall(b"POST /classify HTTP/1.1\r\nX-Slow: ")
        assert client.recv(100) == b""
    with (
        socket.create_connection((host, int(port)), timeout=40) as client,
        pytest.raises((ConnectionResetError, BrokenPipeError)),
    ):
        client.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        for _ in range(1000):
            client.sendall(b"x" * 65536)


def test_trailers_are_no_headers_and_are_not_kept(guarded: Guarded) -> None:
    with connected(guarded, length=None) as client:
        client.sendall(b"1\r\nx\r\n0\r\n")
        client.sendall(f"X-API-Key: {guarded.key}\r\nX-Request-ID: trailing\r\nConnection: close\r\n\r\n".encode())
        client.shutdown(socket.SHUT_WR)
        status, headers, _ = answer_on(client)
    assert (status, headers["x-request-id"] == "trailing") == (401, False)
    before = resident_mib(guarded)
    with connected(guarded, length=None) as client, pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.sendall(b"1\r\nx\r\n0\r\n")
        for _ in range(200):
            client.sendall(10_000 * b"a:\r\n")
            time.sleep(0.01)
    assert resident_mib(guarded) - before < 30


@pytest.mark.parametrize("pause_s", [0, 0.2])
def test_a_wish_for_another_protocol_is_not_heeded(
    small_server: Server, digit_files: list[bytes], pause_s: float
) -> None:
    """As Java's client and `curl --http2` have it with every request; what follows is the request's body."""
    head = (
        b"POST /classify HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nContent-Length: %d\r\n\r\n"
    )
    last = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    host, port = small_server.url.removeprefix("http://").split(":")
    answers = []
    for body in (digit_files[0], b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(head % len(body))
            time.sleep(pause_s)
            client.sendall(body + last)
            received = b""
            while part := client.recv(65536):
                received += part
        answers.append([int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)])
    assert answers == [[200, 200], [422, 200]]


def test_few_requests_of_a_connection_wait(small_server: Server, digit_files: list[bytes]) -> None:
    waiting = 33 * b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    with triton_stopped(small_server), connected(small_server, length=len(digit_files[0])) as client:
        client.sendall(digit_files[0] + waiting)
        client.settimeout(5)
        assert client.recv(1) == b""


def test_nothing_is_written_into_an_answer(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    whole = httpx.get(f"{server.url}/page/swagger-ui-bundle.js", headers={"Accept-Encoding": "identity"}).content
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.settimeout(30)
        client.sendall(8 * b"GET /page/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(1)  # the network is full, and an answer under way
        client.sendall(b"no request\r\n\r\n")
        received = b""
        with suppress(ConnectionResetError):
            while part := client.recv(65536):
                received += part
    assert received.count(b"HTTP/1.1 200 OK\r\n") >= 1
    assert b"HTTP/1.1 400" not in received
    assert received.count(whole) >= 1


def test_line_ends_alone_keep_no_connection(small_server: Server) -> None:
    with closing(HTTPConnection(small_server.url.removeprefix("http://"), timeout=40)) as client:
        client.request("GET", "/livez")
        assert client.getresponse().read()
        client.sock.sendall(b"\r\n")
        assert client.sock.recv(1) == b""


def test_a_head_behind_a_long_answer_has_its_time(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.settimeout(30)
        long = b"GET /page/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n"  # more than the network holds
        client.sendall(15 * long + b"GET /livez HTTP/1.1\r\nHost: a\r\n")
        time.sleep(11)  # one that comes alone has ten seconds
        client.sendall(b"Connection: close\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.count(b"HTTP/1.1 200") == 16


def test_an_idle_connection_is_kept_for_as_long_as_the_setting_says(small_server: Server) -> None:
    client = HTTPConnection(small_server.url.removeprefix("http://"), timeout=60)
    with closing(client):
        asked = time.monotonic()
        client.request("GET", "/livez")
        assert client.getresponse().read()
        assert client.sock.recv(1) == b""
        assert 7 <= time.monotonic() - asked < 40
    default = Settings.model_fields["keep_alive_s"].default
    assert default > 120, "the longest that a common proxy keeps its own (Caddy)"


def test_a_client_that_does_not_read_its_answers_is_let_go(small_server: Server) -> None:
    host, port = small_server.url.removeprefix("http://").split(":")

    def descriptors() -> int:
        return len(list(Path(f"/proc/{small_server.process.pid}/fd").iterdir()))

    before = descriptors()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(30 * b"GET /page/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: descriptors() > before, "it is connected", seconds=5)
        until(lambda: descriptors() <= before, "the connection is ended", seconds=40)
    assert httpx.get(f"{small_server.url}/readyz").status_code == 200


def test_what_a_request_names_costs_no_more_than_its_bytes(small_server: Server) -> None:
    started = time.monotonic()
    name = "a" * (MAX_BODY - 100)
    many = httpx.post(f"{small_server.url}/classify", json={"images": [{"b64": ""}], "parameters": {name: 1}})
    assert (many.status_code, many.json()["code"], len(many.text) < 500) == (422, "bad_parameter", True)
    for query in ({"model": name}, {"model": "digits", "version": name}):
        unknown = httpx.post(f"{small_server.url}/classify", json={"images": [{"b64": ""}], **query})
        assert (unknown.status_code, len(unknown.text) < 500) == (404, True)
    names = "&".join(f"{number:04x}" for number in range(12_000))
    assert httpx.post(f"{small_server.url}/classify?{names}", content=b"a").json()["code"] == "bad_parameter"
    field = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"A" * (MAX_BODY - 200) + b"\r\n--b--\r\n"
    for charset in ("charset=punycode", "charset*=utf-8''punycode"):  # a codec that takes half a minute for it
        headers = {"Content-Type": f"multipart/form-data; boundary=b; {charset}"}
        answer = httpx.post(f"{small_server.url}/classify", content=field, headers=headers, timeout=120)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
        short = field.replace(b"A" * (MAX_BODY - 200), b"A" * 50_000)
        answer = httpx.post(f"{small_server.url}/classify", content=short, headers=headers, timeout=120)
        assert (answer.status_code, answer.json()["code"]) == (400, "missing_image")
        assert "but 'a'" in answer.json()["detail"], "its name is read by no codec but UTF-8"
    assert time.monotonic() - started < 5


def test_connections_are_not_bounded_by_the_usual_limit_on_descriptors(small_server: Server) -> None:
    allowed, most = resource.prlimit(small_server.process.pid, resource.RLIMIT_NOFILE)
    assert allowed >= min(most, 2**16)


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"[" * 100_000, JSON, 400, "malformed_request"),
        (b'{"images":' + b"[" * 900 + b"]" * 900 + b"}", JSON, 400, "malformed_request"),
        (b'{"images":[' + b"[]," * 200_000 + b"[]]}", JSON, 413, "too_many_images"),
        (b'{"images":[' + b'{"b64":""},' * 8 + b'{"b64":""}]}', JSON, 413, "too_many_images"),
        (b'{"images":[{"b64":"","id":1e999}]}', JSON, 400, "malformed_request"),
        (b'{"images":[{"b64":"","id":' + b"9" * 5000 + b"}]}", JSON, 400, "malformed_request"),
        (b'{"images":[{"b64":"","id":"' + b"9" * 5000 + b'"}]}', JSON, 400, "malformed_request"),
        (b'{"images":[{"b64":"!!!!"}]}', JSON, 422, "undecodable_image"),
        (
            (PART + b"\r\nx\r\n") * 5000 + b"--b--\r\n",
            MULTIPART,
            413,
            "too_many_images",
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\nx\r\n' * 5000 + b"--b--\r\n",
            MULTIPART,
            400,
            "malformed_request",
        ),
        (
            PART + b"X: " + b"x" * 500_000 + b"\r\n\r\nx\r\n--b--",
            MULTIPART,
            400,
            "malformed_request",
        ),
    ],
)  # fmt: skip
def test_bodies_made_to_cost(
    small_server: Server, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = httpx.post(f"{small_server.url}/classify", content=body, headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_what_was_refused_is_not_kept(server: Server, digit_files: list[bytes]) -> None:
    """Neither a request's body nor one picture of several, though Python may not look for garbage meanwhile."""

    def ask(**body: object) -> int:
        return client.post(f"{server.url}/classify", **body).status_code

    junk = bytes(8 * 2**20)
    with httpx.Client(timeout=30) as client:
        assert ask(content=junk) == 422
        before = resident_mib(server)
        for _ in range(25):
            assert ask(content=junk) == 422
            assert ask(files=[("image", junk), ("image", digit_files[0])]) == 200
            assert client.post(f"{server.url}/classify?model=no", content=junk).status_code == 404
    assert resident_mib(server) - before < 100


def test_answers_that_nobody_reads_are_bounded() -> None:
    admission = Admission(64, 10 * PIECE_BYTES, 503)
    content = os.urandom(6 * PIECE_BYTES + 1)
    whole: list[bytes] = []

    async def ask(reads: asyncio.Event) -> None:
        async def send(message: Message) -> None:
            await reads.wait()
            whole.append(message.get("body", b""))

        await LargeAnswer(content, admission, {})({"type": "http"}, AsyncMock(), send)

    async def both() -> None:
        reads = asyncio.Event()
        first = asyncio.create_task(ask(reads))
        await asyncio.sleep(0)
        with pytest.raises(OverloadError):
            await ask(reads)
        reads.set()
        await first
        assert b"".join(whole) == content
        assert max(map(len, whole)) == PIECE_BYTES
        await ask(reads)  # what was read makes room

    asyncio.run(both())


def test_a_large_answer_is_whole(small_server: Server, digit_files: list[bytes]) -> None:
    form = [("image", digit) for digit in digit_files[:8]]
    answer = httpx.post(f"{small_server.url}/classify?embedding=true", files=form, timeout=30)
    assert len(answer.content) == int(answer.headers["content-length"]) > 2 * PIECE_BYTES
    assert [result["status"] for result in answer.json()["results"]] == ["ok"] * 8


def test_equal_ids_are_answered_in_order(small_server: Server, digit_files: list[bytes]) -> None:
    entries = [{"id": "same", "b64": base64.b64encode(file).decode()} for file in digit_files[:3]]
    results = httpx.post(f"{small_server.url}/classify", json={"images": entries}, timeout=30).json()["results"]
    assert [result["id"] for result in results] == ["same"] * 3
    for file, result in zip(digit_files, results, strict=False):
        alone = httpx.post(f"{small_server.url}/classify", content=file, timeout=30).json()["results"][0]
        assert result["predictions"][0]["label"] == alone["predictions"][0]["label"]


def test_full_queue_is_refused_and_who_hangs_up_frees_his_place(small_server: Server, digit_files: list[bytes]) -> None:
    """200 clients ask of a Triton that stands still and leave; it is asked for next to nothing when it goes on."""
    asked_before = small_server.metric("tresnet_batch_size_sum")
    with triton_stopped(small_server):
        for _ in range(200 // MAX_QUEUE + 1):
            clients = [connected(small_server, length=len(digit_files[0])) for _ in range(MAX_QUEUE)]
            for client in [context.__enter__() for context in clients]:
                client.sendall(digit_files[0])
            until(lambda: _is_full(small_server, digit_files[0]))
            for context in clients:
                context.__exit__(None, None, None)
            until(lambda: small_server.metric("tresnet_queue_depth_images") == 0)
    until(lambda: httpx.post(f"{small_server.url}/classify", content=digit_files[0], timeout=60).status_code == 200)
    assert small_server.metric("tresnet_batch_size_sum") - asked_before < 100
    left = small_server.metric("tresnet_http_requests_total", route="/classify", code="400")
    assert left >= 150
    assert small_server.metric("tresnet_http_requests_total", code="500") == 0
    assert small_server.metric("tresnet_rejected_total", reason="queue_full") >= 1


def _is_full(server: Server, picture: bytes) -> bool:
    """Whether one more is refused; if not, it leaves soon by its deadline."""
    answer = httpx.post(f"{server.url}/classify", content=picture, headers={"X-Request-Timeout-Ms": "50"}, timeout=30)
    if answer.status_code != 429:
        return False
    assert answer.json()["code"] == "queue_full"
    assert int(answer.headers["retry-after"]) >= 1
    return True


def test_what_expired_is_not_computed(small_server: Server, digit_files: list[bytes]) -> None:
    def ask(headers: dict[str, str]) -> httpx.Response:
        return httpx.post(f"{small_server.url}/classify", content=digit_files[0], headers=headers, timeout=60)

    with ThreadPoolExecutor(20) as pool:
        with triton_stopped(small_server):
            asked_before = small_server.metric("tresnet_batch_size_sum")
            patient = pool.submit(ask, {})  # the one batch that may be at Triton
            until(lambda: small_server.metric("tresnet_inflight_images") == 1)
            hasty = list(pool.map(ask, [{"X-Request-Timeout-Ms": "400"}] * 18))
            assert {answer.json()["code"] for answer in hasty} == {"deadline_exceeded"}
            assert small_server.metric("tresnet_queue_depth_images") == 0
        assert patient.result().status_code == 200
    assert small_server.metric("tresnet_batch_size_sum") - asked_before == 1
