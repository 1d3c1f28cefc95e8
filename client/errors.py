"""What a call raises.

``ClientError``
├── ``ProblemError``          the gateway refused, and said why
│   ├── ``UnauthorizedError`` no API key, or a wrong one (401)
│   ├── ``UnavailableError``  it would not answer now, for longer than the caller's patience (429, 502, 503, 504)
│   └── ``RefusedError``      the request is wrong; asking again will not help (all others)
├── ``UnreachableError``      nobody answered, for longer than the caller's patience
└── ``NotAGatewayError``      what answered speaks otherwise
"""

from __future__ import annotations

from client.answers import Problem


class ClientError(Exception):
    """Any of them."""


class ProblemError(ClientError):
    """The gateway's problem document."""

    def __init__(self, problem: Problem, request_id: str | None, retry_after_s: float | None) -> None:
        super().__init__(f"{problem.detail} ({problem.status} {problem.code})")
        self.problem = problem
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class UnauthorizedError(ProblemError):
    """401."""


class UnavailableError(ProblemError):
    """429, 502, 503 or 504, as often as it was asked."""


class RefusedError(ProblemError):
    """400, 404, 405, 413, 415, 422, 500: the same request gets the same answer."""


class UnreachableError(ClientError):
    """No connection, or none that lasted until the answer."""


class NotAGatewayError(ClientError):
    """The answer is not one of a gateway's: another service listens there."""


RETRIED = frozenset((429, 502, 503, 504))
"""Every request only asks, so asking again does no harm."""


def problem_error(problem: Problem, request_id: str | None, retry_after_s: float | None) -> ProblemError:
    """The error of its status."""
    kind: type[ProblemError] = RefusedError
    if problem.status == 401:
        kind = UnauthorizedError
    elif problem.status in RETRIED:
        kind = UnavailableError
    return kind(problem, request_id, retry_after_s)
