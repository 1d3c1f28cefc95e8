"""What the OpenAPI document says of the two main routes; they read their bodies themselves."""

from __future__ import annotations

from typing import Any

from app.parameters import Parameters

_STRING: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mM4AQAAygDJNEIn8wAAAABJRU5ErkJggg=="
"""A whole PNG of one pixel, so that the example can be tried."""
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        **{name: {"type": "string"} for name in ("type", "title", "detail", "instance", "code", "request_id")},
        "status": {"type": "integer"},
    },
}
_STATUSES = {
    400: "Malformed request",
    401: "No or a wrong API key (where keys are set)",
    404: "Unknown model or version",
    413: "Too many bytes, pixels or pictures",
    415: "Not a picture's media type",
    422: "Undecodable picture or bad parameter",
    429: "The API key is over its rate, or the queue is full (where the operator chose 429)",
    502: "Triton answered wrongly",
    503: "The queue is full, Triton is away, the model is not ready, or the gateway drains",
    504: "Past the deadline",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {"schema": _PROBLEM}}}
    for status, text in _STATUSES.items()
}


def request_body(parameters: type[Parameters]) -> dict[str, Any]:
    """The three forms of body, and the query parameters."""
    schema = parameters.model_json_schema()
    picture = {"schema": {"type": "string", "format": "binary"}}
    images = {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("id", "b64", "url")},
        },
    }
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": entry.get("description", ""),
                "schema": entry,
            }
            for name, entry in schema["properties"].items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": picture,
                "application/octet-stream": picture,
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "properties": {"image": {"type": "array", "items": picture["schema"]}},
                    }
                },
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["images"],
                        "properties": {
                            "images": images,
                            "parameters": {"type": "object"},
                            "model": {"type": "string"},
                            "version": {"type": "string"},
                        },
                    },
                    "example": {"images": [{"id": "a", "b64": _DOT}]},
                },
            },
        },
    }


def answer_schema(task: str) -> dict[int | str, dict[str, Any]]:
    """The 200 answer of ``/classify`` or ``/tag``."""
    numbers = ("score",) if task == "classify" else ("score", "threshold")
    found = _object(label=_STRING, label_id=_COUNT, **{name: {"type": "number"} for name in numbers})
    rows = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    found["properties"]["heat_map"] = {"anyOf": [rows, {"type": "null"}]}
    listed = "predictions" if task == "classify" else "tags"
    good = _object(
        id=_STRING, status={"const": "ok"}, width=_COUNT, height=_COUNT, **{listed: {"type": "array", "items": found}}
    )
    good["properties"]["embedding"] = {"type": "array", "items": {"type": "number"}}
    good["properties"]["heat_map_box"] = {
        "type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4
    }  # fmt: skip
    error = _object(status={"type": "integer"}, code=_STRING, detail=_STRING)
    bad = _object(id=_STRING, status={"const": "error"}, error=error)
    model = _object(name=_STRING, version=_STRING, task={"const": task})
    full = _object(request_id=_STRING, model=model, results={"type": "array", "items": {"oneOf": [good, bad]}})
    short = {"type": "array", "items": _object(label=_STRING, score={"type": "number"})}
    schema = {"anyOf": [full, short, {"type": "array", "items": short}]}
    entry: dict[str, Any] = {"label": "7", "label_id": 7, "score": 0.98}
    if task == "tag":
        entry["threshold"] = 0.71
    example = {
        "request_id": "6f0c…",
        "model": {"name": "digits" if task == "classify" else "multidigits", "version": "1", "task": task},
        "results": [{"id": "0", "status": "ok", "width": 64, "height": 64, listed: [entry]}],
    }
    return json_answer(
        "One result a picture, in order; with `format=hf` lists of label and score alone", schema, example
    )


def json_answer(text: str, schema: dict[str, Any], example: Any = None) -> dict[int | str, dict[str, Any]]:
    """A 200 answer of JSON."""
    content = {"schema": schema} | ({"example": example} if example else {})
    return {200: {"description": text, "content": {"application/json": content}}}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    """An object with all of these properties and no others."""
    return {
        "type": "object", "required": list(properties), "properties": properties, "additionalProperties": False
    }  # fmt: skip


LIVE = json_answer("The process is up", _object(status={"const": "live"}))
_FAILED_VERSION = _object(model=_STRING, version=_STRING, reason=_STRING)
READY = json_answer(
    "Ready; versions in the repository that failed and are not served are named",
    _object(
        status={"const": "ready"},
        models={"type": "array", "items": _STRING},
        failed={"type": "array", "items": _FAILED_VERSION},
    ),
)
MODELS = json_answer(
    "Each ready model's contract", _object(models={"type": "array", "items": {"type": "object", "required": ["name"]}})
)
METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": _STRING}}}
}
