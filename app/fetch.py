"""Pictures by URL: from a host that the operator allows, at an address that is public, or not at all.

The name is resolved once, in the very step that connects: the address that was checked is the address that is
connected to, so a name that changes its address in between gains nothing. Redirects are followed here, one by one,
each as if the client had sent it. No proxy, no cookie, no credential, no compression.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

import httpcore
import httpx

from app.body import Body, ImageInput
from app.errors import DeadlineError, RequestError, ServiceError
from app.metrics import Metrics
from app.record import RequestRecord
from app.settings import Settings
from app.tracing import Tracing

Resolve = Callable[[str, int], Awaitable[list[str]]]

_MOST_REDIRECTS = 3
_MOST_AT_ONCE = 32
_SHARE_OF_TIME = 0.75
"""Of what the request has left; the rest is for the pictures that have come."""
_DEFAULT_PORTS = {"https": 443, "http": 80}
_HEADERS = [(b"Accept", b"image/*"), (b"Accept-Encoding", b"identity"), (b"User-Agent", b"tresnet-serving")]
_EXTENSIONS = {"timeout": {"connect": 5.0}}  # seconds, for each address; all else ends with the time for fetching
_IPV6_UNICAST = ip_network("2000::/3")
# Relays to other networks (6to4, Teredo) and special ranges that not every release of Python knows to be such.
_SPECIAL = [ip_network(net) for net in ("2002::/16", "2001::/23", "3fff::/20", "192.0.0.0/24", "192.88.99.0/24")]


def is_public(address: str) -> bool:
    """Whether the address belongs to a machine of the public internet, and leads to no other one."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    # Outside of 2000::/3 lie IPv6's loopback, local, multicast, IPv4-mapped and NAT64 ranges.
    if isinstance(parsed, IPv6Address) and parsed not in _IPV6_UNICAST:
        return False
    is_special = parsed.is_multicast or parsed.is_reserved or any(parsed in network for network in _SPECIAL)
    return parsed.is_global and not is_special


async def resolve(host: str, port: int) -> list[str]:
    """The host's addresses, as the system resolves it."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses alone. TLS above it still sees, and checks, the host's name.

    ``resolve`` and ``is_public`` are seams for tests.
    """

    def __init__(self, resolve: Resolve = resolve, is_public: Callable[[str], bool] = is_public) -> None:
        self._resolve = resolve
        self._is_public = is_public
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the name cannot be resolved") from error
        if not addresses or not all(self._is_public(address) for address in addresses):
            raise _not_allowed("its address is not public")
        for address in addresses[:-1]:
            try:
                return await self._sockets.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue  # the next one may answer
        return await self._sockets.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


class Fetcher:
    """Fetches the pictures that a body names by URL."""

    def __init__(self, settings: Settings, metrics: Metrics, tracing: Tracing, network: PublicNetwork) -> None:
        self._hosts = settings.url_hosts
        self._schemes = settings.url_schemes
        self._max_bytes = settings.max_body_bytes
        self._metrics = metrics
        self._tracing = tracing
        self._network = network
        self._trusted = httpx.create_ssl_context() if settings.url_hosts else None
        self._free = asyncio.Semaphore(_MOST_AT_ONCE)

    async def fill(self, body: Body, deadline: float, record: RequestRecord, take: Callable[[int], None]) -> Body:
        """The body with its URLs' pictures, or the reason in a picture's place. All together are bounded as a body is.

        ``take`` is told of bytes as they come. Where no host is allowed, the reason stands there already.
        """
        if not self._hosts or not body.urls:
            return body
        budget = _Budget(self._max_bytes, take)
        now = asyncio.get_running_loop().time()
        until = now + _SHARE_OF_TIME * (deadline - now)
        started = time.perf_counter()
        # A pool of this request alone: what is cancelled may stay in httpcore's pool for good, and goes with it.
        async with httpcore.AsyncConnectionPool(
            self._trusted, max_connections=_MOST_AT_ONCE, network_backend=self._network
        ) as pool:
            found = await asyncio.gather(*(self._one(pool, url, budget, until) for url in body.urls.values()))
        record.times.fetch = time.perf_counter() - started
        self._tracing.stage(record, "fetch", started, record.times.fetch)
        fetched = dict(zip(body.urls, found, strict=True))
        images = [ImageInput(image.id, fetched.get(index, image.data)) for index, image in enumerate(body.images)]
        return replace(body, images=images)

    async def _one(
        self, pool: httpcore.AsyncConnectionPool, url: str, budget: _Budget, until: float
    ) -> bytes | ServiceError:
        try:
            async with asyncio.timeout_at(until), self._free:
                data = await self._follow(pool, url, budget)
        except ServiceError as error:
            failure = error
        except TimeoutError:
            failure = DeadlineError()
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):  # OSError: TLS's
            failure = _unreachable("the host cannot be reached, or does not speak HTTP")
        else:
            self._metrics.url_fetches.labels("ok").inc()
            return data
        self._metrics.url_fetches.labels(failure.code).inc()
        return failure

    async def _follow(self, pool: httpcore.AsyncConnectionPool, url: str, budget: _Budget) -> bytes:
        for _ in range(1 + _MOST_REDIRECTS):
            target = self._check(url)
            headers = [(b"Host", _host(target)), *_HEADERS]
            async with pool.stream("GET", target, headers=headers, extensions=_EXTENSIONS) as response:
                if response.status == 200:
                    return await budget.read(response)
                if response.status not in (301, 302, 303, 307, 308):
                    raise _unreachable(f"the host answered {response.status}")
                location = httpx.Headers(response.headers).get("location")
                if not location:
                    raise _unreachable("the host redirects to nowhere")
                url = _joined(url, location)
        raise _unreachable(f"more than {_MOST_REDIRECTS} redirects")

    def _check(self, url: str) -> httpcore.URL:
        """The URL taken apart, once: what is checked here is what is asked.

        Raises:
            RequestError: if it is no URL, or one that the operator does not allow.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            raise _not_allowed("it is no URL") from None
        if parsed.scheme not in self._schemes:
            raise _not_allowed(f"its scheme must be {' or '.join(self._schemes)}")
        if parsed.userinfo:
            raise _not_allowed("it holds credentials")
        host = parsed.raw_host.decode("ascii")
        port = parsed.port or _DEFAULT_PORTS[parsed.scheme]
        if not any(_fits(host, port, _DEFAULT_PORTS[parsed.scheme], allowed) for allowed in self._hosts):
            raise _not_allowed("its host is not among those allowed here")
        return httpcore.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=port, target=parsed.raw_path)


def _joined(url: str, location: str) -> str:
    try:
        return str(httpx.URL(url).join(location))
    except (httpx.InvalidURL, ValueError):
        raise _not_allowed("it is no URL") from None


class _Budget:
    """How many bytes the pictures of one request may still take; one that fails gives back what it took."""

    def __init__(self, size: int, take: Callable[[int], None]) -> None:
        self._size = size
        self._take = take
        self._left = size

    async def read(self, response: httpcore.Response) -> bytes:
        """The response's body.

        Raises:
            RequestError: 413 as soon as it is known to be too large.
        """
        declared = httpx.Headers(response.headers).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._size:
            raise self._too_large
        chunks: list[bytes] = []
        try:
            async for chunk in response.aiter_stream():
                if len(chunk) > self._left:
                    raise self._too_large
                self._take(len(chunk))
                self._left -= len(chunk)
                chunks.append(chunk)
        except BaseException:
            self._left += sum(map(len, chunks))
            raise
        return b"".join(chunks)

    @property
    def _too_large(self) -> RequestError:
        detail = f"the pictures behind the URLs exceed {self._size:,} bytes, one alone or all of them"
        return RequestError(413, "body_too_large", detail)


def _fits(host: str, port: int, default_port: int, allowed: str) -> bool:
    """Whether ``allowed``, ``NAME``, ``*.SUFFIX``, or either with ``:PORT``, means this host and port."""
    if allowed.startswith("["):  # an IPv6 address
        name, _, number = allowed[1:].partition("]")
    else:
        name, _, number = allowed.partition(":")
    if port != int(number.removeprefix(":") or default_port):
        return False
    return host.endswith(name[1:]) if name.startswith("*.") else host == name


def _host(url: httpcore.URL) -> bytes:
    host = b"[%b]" % url.host if b":" in url.host else url.host
    is_default = url.port == _DEFAULT_PORTS[url.scheme.decode()]
    return host if is_default else b"%b:%d" % (host, url.port or 0)


def _not_allowed(reason: str) -> RequestError:
    return RequestError(422, "url_not_allowed", f"the picture's URL is not allowed: {reason}")


def _unreachable(reason: str) -> RequestError:
    return RequestError(422, "url_unreachable", f"the picture cannot be fetched: {reason}")
