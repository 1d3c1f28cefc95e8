"""Pictures by URL: a gateway whose network counts 127.0.0.2 as a public address, and a web server there."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from conftest import Server, free_port, until

from app.api import create_app
from app.body import Body, ImageInput
from app.errors import ServiceError
from app.fetch import Fetcher, PublicNetwork, is_public, resolve
from app.metrics import Metrics
from app.record import RequestRecord
from app.settings import Settings
from app.tracing import Tracing

PUBLIC = "127.0.0.2"
SIZE_LIMIT = 100_000


class Site(ThreadingHTTPServer):
    """Pictures, redirects to where the path says, and what a hostile host answers."""

    def __init__(self, picture: bytes) -> None:
        super().__init__((PUBLIC, 0), _Handler)
        self.picture = picture
        self.asked: list[tuple[str, dict[str, str]]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        kind, _, rest = self.path.removeprefix("/").partition("/")
        if kind == "to":
            self._answer(302, {"Location": rest})
        elif kind == "missing":
            self._answer(404, {})
        elif kind == "large":
            self._answer(200, {"Content-Length": str(SIZE_LIMIT + 1)}, bytes(SIZE_LIMIT + 1))
        elif kind == "endless":
            self._answer(200, {}, bytes(SIZE_LIMIT + 1))
        elif kind == "slow":
            time.sleep(5)
        elif kind == "text":
            self._answer(200, {"Content-Type": "image/png"}, b"no picture")
        else:
            self._answer(200, {"Content-Type": "text/html"}, self.server.picture)

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@dataclass
class Names:
    """A resolver whose answers change: each look-up takes the next list, the last one stays."""

    answers: dict[str, list[list[str]]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host not in self.answers:
            return await resolve(host, port)  # numbers are addresses in every form that the system knows
        answers = self.answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@dataclass
class Fetching:
    url: str
    site: Site
    names: Names

    def ask(self, *urls: str, timeout_ms: int = 20_000) -> list[dict[str, Any]]:
        """One result a URL; of a request that failed as a whole, its error in the same form."""
        body = {"images": [{"url": url} for url in urls]}
        headers = {"X-Request-Timeout-Ms": str(timeout_ms)}
        document = httpx.post(f"{self.url}/classify", json=body, headers=headers, timeout=60).json()
        return document.get("results") or [{"status": "error", "error": document}]

    def code(self, url: str, timeout_ms: int = 20_000) -> str:
        (result,) = self.ask(url, timeout_ms=timeout_ms)
        return "ok" if result["status"] == "ok" else result["error"]["code"]

    def at(self, host: str, path: str = "/picture") -> str:
        return f"http://{host}:{self.site.server_port}{path}"


@pytest.fixture(scope="module")
def fetching(server: Server, digit_files: list[bytes]) -> Iterator[Fetching]:
    [triton] = server.tritons()
    options = dict(option.partition("=")[::2] for option in server.command(triton))
    site = Site(digit_files[0])
    threading.Thread(target=site.serve_forever, daemon=True).start()
    names = Names(
        {
            "pictures.example": [[PUBLIC]],
            "cdn.pictures.example": [[PUBLIC]],
            "inside.pictures.example": [["127.0.0.1"]],
            "metadata.pictures.example": [["169.254.169.254"]],
            "mixed.pictures.example": [[PUBLIC, "10.0.0.1"]],
            "six.pictures.example": [["::ffff:127.0.0.1"]],
        }
    )
    hosts = ["pictures.example", "*.pictures.example", "127.0.0.1", "169.254.169.254", "[::1]", "2130706433"]
    port = free_port()
    settings = Settings(
        triton_url=f"grpc://127.0.0.1:{options['--grpc-port']}",
        url_hosts=(*(f"{host}:{site.server_port}" for host in hosts), "only-default-port.org"),
        url_schemes=("http",),
        max_body_bytes=SIZE_LIMIT,
    )
    network = PublicNetwork(names, lambda address: address == PUBLIC or is_public(address))
    app = create_app(settings, network=network)
    gateway = uvicorn.Server(uvicorn.Config(app, port=port, loop="asyncio", log_config=None, lifespan="on"))
    thread = threading.Thread(target=gateway.run)
    thread.start()
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    try:
        until(is_ready, "the gateway is ready", 60)
        yield Fetching(url, site, names)
    finally:
        gateway.should_exit = True
        thread.join(30)
        site.shutdown()
        site.server_close()


def test_a_picture_is_fetched_whatever_its_declared_type(fetching: Fetching, digit_files: list[bytes]) -> None:
    (fetched,) = fetching.ask(fetching.at("cdn.pictures.example"))
    given = httpx.post(f"{fetching.url}/classify", content=digit_files[0]).json()["results"][0]
    assert [p["label_id"] for p in fetched["predictions"]] == [p["label_id"] for p in given["predictions"]]
    _, headers = fetching.site.asked[-1]
    assert headers["host"] == f"cdn.pictures.example:{fetching.site.server_port}"
    assert not {"authorization", "cookie", "x-api-key"} & headers.keys()


NOT_ALLOWED = [
    "http://inside.pictures.example:PORT/",
    "http://metadata.pictures.example:PORT/latest/meta-data",
    "http://mixed.pictures.example:PORT/",
    "http://six.pictures.example:PORT/",
    "http://127.0.0.1:PORT/",
    "http://169.254.169.254:PORT/",
    "http://[::1]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f000001:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://127.1:PORT/",
    "http://pictures.example@127.0.0.1:PORT/",
    "http://user:password@pictures.example:PORT/picture",
    "http://127.0.0.1:PORT\\@pictures.example:PORT/",
    "http://pictures.example.evil.org:PORT/",
    "http://evilpictures.example:PORT/",
    "http://pictures.example:1/",
    "http://pictures.example/",
    "http://only-default-port.org:PORT/",
    "https://pictures.example:PORT/",
    "file:///etc/passwd",
    "gopher://pictures.example:PORT/",
]


@pytest.mark.parametrize("url", [*NOT_ALLOWED, "//pictures.example:PORT/picture", "http://", ""])
def test_what_is_not_allowed_is_not_asked(fetching: Fetching, url: str) -> None:
    fetching.site.asked.clear()
    assert fetching.code(url.replace("PORT", str(fetching.site.server_port))) == "url_not_allowed"
    assert fetching.site.asked == []


@pytest.mark.parametrize("url", NOT_ALLOWED)
def test_nor_is_it_by_redirect(fetching: Fetching, url: str) -> None:
    fetching.site.asked.clear()
    path = "/to/" + url.replace("PORT", str(fetching.site.server_port))
    assert fetching.code(fetching.at("pictures.example", path)) == "url_not_allowed"
    assert [asked for asked, _ in fetching.site.asked] == [path]


def test_a_name_is_resolved_once(fetching: Fetching) -> None:
    names = fetching.names
    names.answers["rebinding.pictures.example"] = [[PUBLIC], ["127.0.0.1"]]
    names.asked.clear()
    assert fetching.code(fetching.at("rebinding.pictures.example")) == "ok"
    assert names.asked == ["rebinding.pictures.example"]
    assert fetching.code(fetching.at("rebinding.pictures.example")) == "url_not_allowed"


def test_redirects_are_followed_thrice(fetching: Fetching) -> None:
    end = fetching.at("cdn.pictures.example")
    assert fetching.code(fetching.at("pictures.example", f"/to/{end}")) == "ok"
    assert fetching.code(fetching.at("pictures.example", "/to//to//to//picture")) == "ok"
    assert fetching.code(fetching.at("pictures.example", "/to//to//to//to//picture")) == "url_unreachable"
    assert fetching.code(fetching.at("pictures.example", "/to/")) == "url_unreachable"
    assert fetching.code(fetching.at("pictures.example", "/to/http://[")) == "url_not_allowed"
    assert fetching.code(fetching.at("pictures.example", "/to/http:////[/")) == "url_not_allowed"


def test_each_failure_has_its_code_and_fails_alone(fetching: Fetching) -> None:
    cases = {"/picture": "ok", "/missing": "url_unreachable", "/large": "body_too_large", "/text": "undecodable_image"}
    results = fetching.ask(*(fetching.at("pictures.example", path) for path in cases), "http://nobody.example/")
    codes = [result["error"]["code"] if result["status"] == "error" else "ok" for result in results]
    assert codes == [*cases.values(), "url_not_allowed"]
    assert results[1]["error"]["detail"] == "the picture cannot be fetched: the host answered 404"
    assert fetching.code(fetching.at("pictures.example", "/endless")) == "body_too_large"
    assert fetching.code(fetching.at("nameless.pictures.example")) == "url_unreachable"
    started = time.monotonic()
    results = fetching.ask(*(fetching.at("pictures.example", path) for path in ("/picture", "/slow")), timeout_ms=2000)
    assert [result["status"] for result in results] == ["ok", "error"]
    assert fetching.code(fetching.at("pictures.example", "/slow"), timeout_ms=500) == "deadline_exceeded"
    assert time.monotonic() - started < 4


def test_who_leaves_amid_a_fetch_takes_no_place_along() -> None:
    """A pool that is shared loses a connection with some of those who leave, until no URL is fetched any more."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.003)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npicture")
            await writer.drain()
        writer.close()

    async def places_left() -> list[bytes | ServiceError]:
        site = await asyncio.start_server(answer, PUBLIC, 0)
        port = site.sockets[0].getsockname()[1]
        settings = Settings(url_hosts=(f"pictures.example:{port}",), url_schemes=("http",))
        network = PublicNetwork(Names({"pictures.example": [[PUBLIC]]}), lambda _: True)
        fetcher = Fetcher(settings, Metrics(0), Tracing(), network)
        loop, random = asyncio.get_running_loop(), np.random.default_rng(0)
        urls = {index: f"http://pictures.example:{port}/{index}" for index in range(4)}
        body = Body([ImageInput(str(index), b"") for index in urls], {}, urls)

        def fill() -> Awaitable[Body]:
            return fetcher.fill(body, loop.time() + 8, RequestRecord("id"), lambda _: None)

        for _ in range(400):
            leaving = asyncio.create_task(fill())
            await asyncio.sleep(0.01 * random.random())
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        filled = await asyncio.gather(*(fill() for _ in range(12)))
        site.close()
        return [image.data for body in filled for image in body.images]

    assert asyncio.run(places_left()) == [b"picture"] * 48


def test_pictures_of_one_request_are_fetched_side_by_side(fetching: Fetching) -> None:
    started = time.monotonic()
    paths = [*["/slow"] * 30, "/picture"]
    *slow, quick = fetching.ask(*(fetching.at("pictures.example", path) for path in paths))
    assert [result["error"]["code"] for result in slow] == ["url_unreachable"] * 30
    assert quick["status"] == "ok"
    assert time.monotonic() - started < 9, "each takes 5 s"


def test_it_is_off_by_default(server: Server) -> None:
    for url in ("https://pictures.example/", "http://127.0.0.1/", "http://169.254.169.254/"):
        answer = httpx.post(f"{server.url}/classify", json={"images": [{"url": url}]})
        assert (answer.status_code, answer.json()["code"]) == (422, "url_not_allowed")


def test_only_the_public_internet_is_public() -> None:
    inside = """0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 127.255.0.1 169.254.169.254 172.16.0.1 192.0.0.8 192.0.2.1
        192.88.99.1 192.168.1.1 198.18.0.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
        :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1 64:ff9b:1::1 100::1 2001::1 2001:db8::1
        2002:7f00:1:: 3fff::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 localhost"""
    assert [address for address in inside.split() if is_public(address)] == []
    for address in ("8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "2a00:1450:4001::1"):
        assert is_public(address)
