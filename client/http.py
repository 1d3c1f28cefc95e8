"""A :class:`client.conversation.Send` in httpx's terms, for both clients."""

from __future__ import annotations

import math
import re
import ssl
from typing import Any

import httpx

from client.conversation import Send
from client.errors import ClientError

_KEY = re.compile("[!-~]+")
_CONNECT_S = 5.0
_GRACE_S = 2.0
"""Beyond the deadline that the gateway knows, so that its own 504 arrives."""


def http_options(url: str, api_key: str | None, verify: ssl.SSLContext | bool) -> dict[str, Any]:
    """How to make an httpx client: no redirects, and as many connections as are asked for.

    Raises:
        ClientError: if ``url`` is none of HTTP, or ``api_key`` is no key.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ClientError(f"{url!r} is not http://HOST:PORT: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ClientError(f"{url!r} is not http://HOST:PORT")
    if api_key and not _KEY.fullmatch(api_key):
        raise ClientError("an API key is printable ASCII without spaces, as `tresnet key` makes it")
    return {
        "base_url": url.rstrip("/"),
        "headers": {"X-API-Key": api_key} if api_key else {},
        "verify": verify if parsed.scheme == "https" else False,  # loading the authorities takes 30 ms
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
    }


def http_request(http: httpx.Client | httpx.AsyncClient, send: Send) -> httpx.Request:
    """Built anew for each attempt, with what is left of the deadline."""
    asked = send.request
    body: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if asked.method == "POST":
        headers["X-Request-Timeout-Ms"] = str(math.ceil(send.timeout_s * 1000))
    if len(asked.pictures) == 1:
        headers["Content-Type"] = "application/octet-stream"
        body["content"] = asked.pictures[0]
    elif asked.pictures:
        body["files"] = [("image", (str(index), data)) for index, data in enumerate(asked.pictures)]
    request = http.build_request(
        asked.method,
        asked.path,
        params=asked.query,
        headers=headers,
        timeout=httpx.Timeout(send.timeout_s + _GRACE_S, connect=min(_CONNECT_S, send.timeout_s)),
        **body,
    )
    request.read()  # one write, where a form's stream makes four for each picture
    return request
