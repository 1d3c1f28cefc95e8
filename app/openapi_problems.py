"""What the OpenAPI document says of errors: each status with all its codes, and an example of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from app.errors import ServiceError, problem

REQUEST_ID = "6f0c9d1be2a94c5d8f7a3b1c0d9e8f70"
NO_PICTURE = (
    "the bytes are not a picture that can be read, which is a whole file of JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
)
_STATUSES: dict[int, tuple[str, dict[str, str]]] = {
    400: (
        "Malformed request",
        {
            "malformed_request": "the body is not JSON: unexpected end of data: line 1 column 2 (char 1)",
            "missing_image": "the multipart body has no part named 'image', but 'photo': with curl, -F image=@FILE",
            "empty_body": "the body is empty: send a picture",
        },
    ),
    401: (
        "No or a wrong API key (where keys are set)",
        {"unauthorized": "an API key is needed, as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"},
    ),
    404: (
        "Unknown model or version",
        {
            "unknown_model": "there is no model 'cats'; served: digits, multidigits",
            "unknown_version": "model 'digits' has no version '9'; served: 1",
        },
    ),
    413: (
        "Too many bytes, pixels or pictures",
        {
            "body_too_large": "the body is too large; at most 33,554,432 bytes are accepted",
            "too_many_pixels": "the picture has 50000 × 50000 pixels; at most 64,000,000 are accepted",
            "too_many_images": "65 pictures in one request; at most 64 are accepted",
        },
    ),
    415: (
        "Not a picture's media type",
        {
            "unsupported_media_type": "'text/plain' is no picture: send its bytes as image/*, as multipart/form-data, "
            "or JSON"
        },
    ),
    422: (
        "Undecodable picture or bad parameter",
        {
            "undecodable_image": NO_PICTURE,
            "bad_parameter": "top_k: Input should be greater than or equal to 1",
            "model_required": "choose a model for /classify by the parameter 'model': digits, imagenet",
            "url_not_allowed": "fetching pictures by URL is off here: send 'b64'",
            "url_unreachable": "the picture cannot be fetched: the host answered 404",
        },
    ),
    429: (
        "The API key is over its rate, or the queue is full (where the operator chose 429)",
        {
            "rate_limited": "this API key is over its rate; try again later",
            "queue_full": "too much is waiting; try again later",
        },
    ),
    502: (
        "Triton answered wrongly",
        {"triton_error": "the inference server could not answer: it failed to run the model"},
    ),
    503: (
        "The queue is full, Triton is away, the model is not ready, or the gateway drains",
        {
            "queue_full": "too much is waiting; try again later",
            "triton_unavailable": "the inference server is away; try again",
            "model_not_ready": "model 'digits' is not ready; try again",
            "draining": "this server is shutting down; try again",
        },
    ),
    504: ("Past the deadline", {"deadline_exceeded": "the request's deadline passed before the answer was there"}),
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait before asking again.", "schema": {"type": "integer"}}}
PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A problem document (RFC 9457).",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "For people."},
        "instance": {"type": "string"},
        "code": {
            "type": "string",
            "description": "For programs: "
            + ", ".join(sorted({code for _, codes in _STATUSES.values() for code in codes})),
        },
        "request_id": {"type": "string", "description": "As in X-Request-ID and in the gateway's log."},
    },
}


def problems(route: str, statuses: Iterable[int] = _STATUSES, leave_out: str = "") -> dict[int | str, dict[str, Any]]:
    """The error answers of ``route``; ``leave_out`` is a code that it does not have."""
    return {status: _answer(route, status, leave_out) for status in statuses}


def _answer(route: str, status: int, leave_out: str) -> dict[str, Any]:
    text, codes = _STATUSES[status]
    examples = {
        code: {"summary": code, "value": _example(route, status, code, detail)}
        for code, detail in codes.items()
        if code != leave_out
    }
    content = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}
    answer: dict[str, Any] = {"description": text, "content": {"application/problem+json": content}}
    return answer | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})


def _example(route: str, status: int, code: str, detail: str) -> dict[str, object]:
    error = ServiceError(detail)
    error.status, error.code = status, code
    return problem(error, instance=route, request_id=REQUEST_ID)
