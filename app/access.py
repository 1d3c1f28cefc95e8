"""Who may ask: an API key in ``Authorization: Bearer`` or ``X-API-Key``, where the operator has set keys.

Closed by default: a route asks for a key unless it is listed here. Open are what probes and Prometheus ask, who carry
no keys and are kept apart by the network, and the pages that say how to use the service, with the files they are
made of.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import UnauthorizedError
from app.keys import KeyRing
from app.page import PREFIX as PAGE_FILES
from app.record import RequestRecord

POLLED = frozenset(("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"))
"""What probes and Prometheus ask, every few seconds."""
_OPEN = POLLED | {"/", "/docs", "/openapi.json"}


class KeyGate:
    """Lets a request through once its key is known, before its body is read."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope["path"]):
            self._check(Headers(scope=scope), scope["state"]["record"])
        await self.app(scope, receive, send)

    def _check(self, headers: Headers, record: RequestRecord) -> None:
        """Note the key's name in the record.

        Raises:
            UnauthorizedError: without a key, with two that differ, or with one that is not in the file.
        """
        key = self.keys.find(_given_key(headers))
        if key is None:
            raise UnauthorizedError("the API key is not known", wrong=True)
        record.key = key.name


def is_open(path: str) -> bool:
    """Whether ``path`` asks for no key, even where keys are set."""
    return path in _OPEN or path.startswith(PAGE_FILES)


def _given_key(headers: Headers) -> str:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    keys = {headers.get("x-api-key", "").strip(), bearer.strip() if scheme.lower() == "bearer" else ""} - {""}
    if not keys:
        raise UnauthorizedError("an API key is needed, as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
    if len(keys) > 1:
        raise UnauthorizedError("two API keys that differ were given", wrong=True)
    (key,) = keys
    return key
