"""What the OpenAPI document says of the routes, which read their bodies and write their answers themselves.

Schemas have names, so that generated clients have types; :func:`complete` puts them into the document.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from app.access import is_open
from app.openapi_problems import NO_PICTURE, PROBLEM_SCHEMA, REQUEST_ID, problems
from app.parameters import ClassifyParameters, Parameters, TagParameters
from tresnet.contract import UNLISTED_FACTS, ModelContract

Responses = dict[int | str, dict[str, Any]]

_STRING: dict[str, Any] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": "number"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mM4AQAAygDJNEIn8wAAAABJRU5ErkJggg=="
"""A whole PNG of one pixel, so that the example can be tried."""
_REF = "#/components/schemas/"


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REF + name}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(optional: dict[str, Any] | None = None, **required: dict[str, Any]) -> dict[str, Any]:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "required": list(required),
        "properties": required | (optional or {}),
        "additionalProperties": False,
    }


def _answer_schemas(task: str, listed: str, entry: str) -> dict[str, Any]:
    name = task.capitalize()
    results = _list({"oneOf": [_ref(f"{name}Result"), _ref("FailedResult")]})
    return {
        f"{name}Result": _object(
            {"embedding": _list(_NUMBER), "heat_map_box": _list(_NUMBER) | {"minItems": 4, "maxItems": 4}},
            id=_STRING,
            status={"const": "ok"},
            width=_COUNT,
            height=_COUNT,
            **{listed: _list(_ref(entry))},
        ),
        f"{name}Answer": _object(request_id=_STRING, model=_ref("Model"), results=results),
    }


def _question_schema(parameters: type[Parameters]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": _list(_ref("Picture")),
            "parameters": {
                "type": "object",
                "description": f"Those of the query: {', '.join(parameters.model_fields)}",
            },
            "model": _STRING,
            "version": _STRING,
        },
    }


def _contract_schemas() -> dict[str, Any]:
    """Of ``/models``, from the contract itself; without the golden picture, and with the card of one model alone."""
    schema = ModelContract.model_json_schema(mode="serialization", ref_template=_REF + "{model}")
    parts = schema.pop("$defs")
    del parts["GoldenPicture"]
    facts = parts["VersionFacts"]
    for unlisted in UNLISTED_FACTS:
        del facts["properties"][unlisted]
    facts["required"] = [name for name in facts["required"] if name in facts["properties"]]
    default = {"type": "boolean", "description": "Whether it answers a request of its task that names no model."}
    schema["properties"] |= {"labels": _list(_STRING), "is_default": default}
    schema["required"] += ["labels", "is_default"]
    with_card = {
        "title": "ModelWithCard",
        "properties": schema["properties"] | {"card": {"type": ["string", "null"], "description": "Markdown."}},
        "required": [*schema["required"], "card"],
    }
    return {**parts, "ServedModel": schema | {"title": "ServedModel"}, "ModelWithCard": schema | with_card}


_HEAT_MAP = {"heat_map": {"anyOf": [_list(_list(_NUMBER)), {"type": "null"}]}}
_SCHEMAS: dict[str, Any] = {
    "Problem": PROBLEM_SCHEMA,
    "Model": _object(name=_STRING, version=_STRING, task={"enum": ["classify", "tag"]}),
    "Prediction": _object(_HEAT_MAP, label=_STRING, label_id=_COUNT, score=_NUMBER),
    "Tag": _object(_HEAT_MAP, label=_STRING, label_id=_COUNT, score=_NUMBER, threshold=_NUMBER),
    "PictureError": _object(status={"type": "integer"}, code=_STRING, detail=_STRING),
    "FailedResult": _object(id=_STRING, status={"const": "error"}, error=_ref("PictureError")),
    **_answer_schemas("classify", "predictions", "Prediction"),
    **_answer_schemas("tag", "tags", "Tag"),
    "LabelScore": _object(label=_STRING, score=_NUMBER),
    "Picture": {
        "type": "object",
        "description": "Either `b64` or `url`.",
        "properties": {
            "id": {"type": "string", "description": "Comes back with the result; its place by default."},
            "b64": {"type": "string", "description": "A picture file, in base64."},
            "url": {"type": "string", "description": "Where it can be fetched, if the operator allows the host."},
        },
    },
    "ClassifyQuestion": _question_schema(ClassifyParameters),
    "TagQuestion": _question_schema(TagParameters),
    "Live": _object(status={"const": "live"}),
    "FailedVersion": _object(model=_STRING, version=_STRING, reason=_STRING),
    "Ready": _object(status={"const": "ready"}, models=_list(_STRING), failed=_list(_ref("FailedVersion"))),
    "Models": _object(models=_list(_ref("ServedModel"))),
    **_contract_schemas(),
}


def complete(app: FastAPI, *, wants_keys: bool) -> None:
    """Add the named schemas, and how a key is given where one is wanted, to the document of all routes."""
    document = app.openapi()
    document["components"] = {"schemas": _SCHEMAS}
    if not wants_keys:
        return
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, item in document["paths"].items():
        for operation in item.values() if not is_open(path) else ():
            operation["security"] = [{"bearer": []}, {"key": []}]


def _query(parameters: type[Parameters]) -> list[dict[str, Any]]:
    described = []
    for name, entry in parameters.model_json_schema()["properties"].items():
        choices = [choice for choice in entry.get("anyOf", []) if choice != {"type": "null"}]
        schema = choices[0] if choices else {key: entry[key] for key in entry.keys() - {"title", "description"}}
        text = entry.get("description", "")
        described.append({"name": name, "in": "query", "required": False, "description": text, "schema": schema})
    return described


_HEADERS: list[dict[str, Any]] = [
    {
        "name": "X-Request-Timeout-Ms", "in": "header", "required": False, "schema": {"type": "integer", "minimum": 1},
        "description": "The request's deadline, bounded by the server's.", "example": 30_000,
    },
    {
        "name": "X-Request-ID", "in": "header", "required": False, "schema": _STRING,
        "description": "A name for the request, in its answer and in the log; any but 1 to 128 visible ASCII "
        "characters is replaced by one of the server's.", "example": REQUEST_ID,
    },
]  # fmt: skip


def question(task: str, parameters: type[Parameters]) -> dict[str, Any]:
    """The three forms of body, and the parameters."""
    picture = {"schema": {"type": "string", "format": "binary"}}
    more = {"top_k": 3} if task == "classify" else {"threshold": 0.5}
    examples = {
        "one": {"summary": "One picture", "value": {"images": [{"b64": _DOT}]}},
        "several": {
            "summary": "Several, with parameters",
            "value": {"images": [{"id": "a", "b64": _DOT}, {"id": "b", "b64": _DOT}], "parameters": more},
        },
        "by_url": {
            "summary": "By URL, where the operator allows the host",
            "value": {"images": [{"id": "a", "url": "https://images.example.com/a.jpg"}]},
        },
    }
    form = {"type": "object", "required": ["image"], "properties": {"image": _list(picture["schema"])}}
    return {
        "parameters": [*_query(parameters), *_HEADERS],
        "requestBody": {
            "required": True,
            "description": "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF, whatever is declared; the first frame of "
            f"animations. One picture's bytes: `curl --data-binary @a.jpg …/{task}`. Or several as a form: "
            f"`curl -F image=@a.jpg -F image=@b.png …/{task}`, whose other fields are parameters. Or JSON.",
            "content": {
                "image/*": picture,
                "application/octet-stream": picture,
                "multipart/form-data": {"schema": form},
                "application/json": {"schema": _ref(f"{task.capitalize()}Question"), "examples": examples},
            },
        },
    }


def answers(task: str) -> Responses:
    """What ``/classify`` or ``/tag`` answers, with every error."""
    listed = "predictions" if task == "classify" else "tags"
    entry: dict[str, Any] = {"label": "7", "label_id": 7, "score": 0.98}
    if task == "tag":
        entry["threshold"] = 0.71
    model = {"name": "digits" if task == "classify" else "multidigits", "version": "1", "task": task}
    good = {"id": "a", "status": "ok", "width": 64, "height": 64, listed: [entry]}
    error = {"status": 422, "code": "undecodable_image", "detail": NO_PICTURE}
    bad = {"id": "b", "status": "error", "error": error}
    short = [{"label": "7", "score": 0.98}]
    examples = {
        "one": ("One picture", {"request_id": REQUEST_ID, "model": model, "results": [good]}),
        "one_failed": ("One of two failed", {"request_id": REQUEST_ID, "model": model, "results": [good, bad]}),
        "embedding": (
            "With `embedding=true` (shortened)",
            {"request_id": REQUEST_ID, "model": model, "results": [{**good, "embedding": [0.12, 0.0, 1.7]}]},
        ),
        "explain": (
            "With `explain=true` (shortened)",
            {
                "request_id": REQUEST_ID,
                "model": model,
                "results": [
                    {**good, listed: [{**entry, "heat_map": [[-0.4, 2.1], [0.3, 9.8]]}], "heat_map_box": [0, 0, 64, 64]}
                ],
            },
        ),
        "hf": ("With `format=hf`", short),
        "hf_several": ("With `format=hf`, two pictures", [short, short]),
    }
    hf = _list(_ref("LabelScore"))
    schema = {"anyOf": [_ref(f"{task.capitalize()}Answer"), hf, _list(hf)]}
    text = "One result a picture, in order; with `format=hf` lists of label and score alone"
    ok = _json(text, schema, examples)
    ok[200]["headers"] = {
        "X-Request-ID": {"description": "The request's own, or a new one.", "schema": _STRING},
        "Server-Timing": {"description": "decode, queue, infer and total, in milliseconds.", "schema": _STRING},
    }
    return ok | problems(f"/{task}")


def _json(text: str, schema: dict[str, Any], examples: dict[str, tuple[str, Any]]) -> Responses:
    """A 200 answer of JSON."""
    shown = {name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()}
    return {200: {"description": text, "content": {"application/json": {"schema": schema, "examples": shown}}}}


LIVE = _json("The process is up", _ref("Live"), {"live": ("Live", {"status": "live"})})
READY = _json(
    "Ready; versions in the repository that failed and are not served are named",
    _ref("Ready"),
    {
        "all": ("All is well", {"status": "ready", "models": ["digits", "multidigits"], "failed": []}),
        "one_failed": (
            "A new version failed, and the one before serves",
            {
                "status": "ready",
                "models": ["digits"],
                "failed": [{"model": "digits", "version": "2", "reason": "its golden picture's scores are 0.731 off"}],
            },
        ),
    },
) | problems("/readyz", [503], leave_out="queue_full")
READY_PARAMETERS = {
    "parameters": [
        {
            "name": "models", "in": "query", "required": False, "schema": {"type": "string", "enum": ["all", "any"]},
            "example": "any", "description": "Which have to answer; all by default.",
        }
    ]
}  # fmt: skip
_MODEL = {
    "name": "digits", "version": "1", "task": "classify", "num_labels": 2, "embedding_size": 2048,
    "max_batch_size": 32, "heat_maps": {"labels": 2, "height": 1, "width": 1},
    "labels_sha256": "93cf…", "labels": ["even", "odd"], "is_default": True,
    "preprocessing": {"image_size": 32, "crop_pct": 1.0, "interpolation": "bilinear", "resize_mode": "crop"},
    "facts": {
        "architecture": "tresnet_m", "precision": "fp32", "source_sha256": "1f0a…", "tools": {"torch": "2.13.0"},
        "temperature": 1.31, "thresholds": None,
    },
}  # fmt: skip
MODELS = _json(
    "Each ready model's contract", _ref("Models"), {"one": ("One model", {"models": [_MODEL]})}
) | problems("/models", [401])  # fmt: skip
MODEL = _json(
    "The model's contract, and its card in Markdown; `null` where it was exported without one",
    _ref("ModelWithCard"),
    {"card": ("With a card (shortened)", {**_MODEL, "card": "# Model card: digits\n\n…"})},
) | problems("/models/digits", [401, 404, 503], leave_out="queue_full")
MODEL_PARAMETERS = {
    "parameters": [
        {"name": "name", "in": "path", "required": True, "schema": _STRING, "example": "digits"},
        {
            "name": "version", "in": "query", "required": False, "schema": _STRING, "example": "1",
            "description": "The highest by default.",
        },
    ]
}  # fmt: skip
METRICS: Responses = {
    200: {
        "description": "Prometheus' text format",
        "content": {
            "text/plain": {"schema": _STRING, "example": "# TYPE tresnet_triton_up gauge\ntresnet_triton_up 1.0\n"}
        },
    }
}
