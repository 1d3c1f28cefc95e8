"""Everything that can go wrong with a request, as one hierarchy: each error is its status, code and message.

``ServiceError``
├── ``RequestError``      the client can mend it (4xx)
├── ``UnauthorizedError`` no API key, or a wrong one (401, with WWW-Authenticate)
├── ``RateLimitError``    the API key is over its rate (429, with Retry-After)
├── ``OverloadError``     too much at once (429 or 503, with Retry-After)
├── ``UnavailableError``  not now (503, with Retry-After)
│   ├── ``DrainingError``       the gateway shuts down
│   ├── ``ModelNotReadyError``  Triton has not loaded the model, or has lost it
│   ├── ``TritonFullError``     as many as it lets wait are waiting there
│   └── ``TritonAwayError``     none is reached
│       └── ``TritonStoppingError``  one is reached that stops
├── ``TritonAnswerError`` Triton answers wrongly (502)
└── ``DeadlineError``     out of time (504)
"""

from __future__ import annotations

import math
from http import HTTPStatus

_SOON_S = 2.0
"""When to come back to what is not there now."""


class ServiceError(Exception):
    """``detail`` is shown to the client; ``retry_after_s`` becomes the Retry-After header."""

    status = 500
    code = "internal_error"

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}

    def forget_frames(self) -> None:
        """Let go of the frames that the error came through, once nobody will print them.

        They hold the request's body, and some of them the error: such a cycle stays until Python looks for garbage.
        """
        self.__traceback__ = self.__cause__ = self.__context__ = None


class RequestError(ServiceError):
    """A fault of the request, with the status and code that the table of errors gives it."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class UnauthorizedError(ServiceError):
    """Keys are set, and the request brings none of them."""

    status = 401
    code = "unauthorized"

    def __init__(self, detail: str, *, wrong: bool = False) -> None:
        super().__init__(detail)
        self._wrong = wrong

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="tresnet"' + (', error="invalid_token"' if self._wrong else "")}


class RateLimitError(ServiceError):
    """The caller's key has asked for more pictures a second than it may."""

    status = 429
    code = "rate_limited"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("this API key is over its rate; try again later", retry_after_s=retry_after_s)


class OverloadError(ServiceError):
    """The queue is full; ``status`` is the operator's choice of 429 or 503."""

    code = "queue_full"

    def __init__(self, status: int, retry_after_s: float) -> None:
        super().__init__("too much is waiting; try again later", retry_after_s=retry_after_s)
        self.status = status


class UnavailableError(ServiceError):
    """Not now, and soon again, or by another server."""

    status = 503

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after_s=_SOON_S)


class DrainingError(UnavailableError):
    """The gateway shuts down."""

    code = "draining"

    def __init__(self, detail: str = "this server is shutting down; try again") -> None:
        super().__init__(detail)


class ModelNotReadyError(UnavailableError):
    """Triton has not loaded the model, or has lost it."""

    code = "model_not_ready"

    @classmethod
    def of(cls, name: str) -> ModelNotReadyError:
        return cls(f"model {name!r} is not ready; try again")


class TritonFullError(UnavailableError):
    """As many pictures as Triton lets wait are waiting there."""

    code = "queue_full"


class TritonAwayError(UnavailableError):
    """No Triton is reached."""

    code = "triton_unavailable"

    def __init__(self, detail: str = "the inference server is away; try again") -> None:
        super().__init__(detail)


class TritonStoppingError(TritonAwayError):
    """The Triton that was asked is stopping; another may answer."""

    def __init__(self) -> None:
        super().__init__("the inference server is stopping; try again")


class TritonAnswerError(ServiceError):
    """Triton answered, but not with what the model's contract promises."""

    status = 502
    code = "triton_error"


class DeadlineError(ServiceError):
    """The request's deadline passed before its answer was there."""

    status = 504
    code = "deadline_exceeded"

    def __init__(self) -> None:
        super().__init__("the request's deadline passed before the answer was there")


def bad_parameter(detail: str) -> RequestError:
    return RequestError(422, "bad_parameter", detail)


def problem(error: ServiceError, *, instance: str, request_id: str) -> dict[str, object]:
    """The RFC 9457 problem document of ``error``."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "request_id": request_id,
    }
