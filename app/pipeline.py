"""The way of a request: parameters → admission → decode → batch → Triton → labels. Read :func:`answer`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.admission import Admission
from app.answer_cache import AnswerCache, Seen
from app.body import Body, ImageInput
from app.catalogue import Catalogue, Picture, ServedModel
from app.decoder import Decoder
from app.errors import DeadlineError, RequestError, ServiceError, UnavailableError
from app.keys import KeyRing
from app.metrics import Metrics
from app.parameters import LONGEST_SHOWN, ClassifyParameters, Parameters, TagParameters
from app.record import RequestRecord
from app.settings import Settings
from app.tracing import Tracing
from app.triton import Prediction
from tresnet.terms import Task


@dataclass(frozen=True)
class Gateway:
    """All that requests share."""

    settings: Settings
    metrics: Metrics
    catalogue: Catalogue
    decoder: Decoder
    admission: Admission
    cache: AnswerCache
    keys: KeyRing
    tracing: Tracing


@dataclass(frozen=True)
class Answer:
    """The model that answered, and one result a picture, in order."""

    model: ServedModel
    results: list[dict[str, Any]]


async def answer(
    gateway: Gateway,
    task: Task,
    body: Body,
    parameters: Parameters,
    *,
    deadline: float,
    record: RequestRecord,
) -> Answer:
    """Answer every picture of ``body``; one that fails fails alone.

    Raises:
        ServiceError: if the request cannot be taken, or if every picture failed (the first one's error).
    """
    with gateway.admission.admit(len(body.images)):
        while True:
            model = gateway.catalogue.find(task, parameters.model, parameters.version)
            record.model, record.version = model.contract.name, model.contract.version
            check_parameters(model, parameters)
            outcomes = await asyncio.gather(
                *(_one(gateway, model, image, parameters, deadline, record) for image in body.images),
                return_exceptions=True,
            )
            if not any(_is_gone(outcome) for outcome in outcomes):
                break
            # The version was taken out meanwhile: another may serve, and if none does, find() says so.
    results: list[dict[str, Any]] = []
    first_error: ServiceError | None = None
    for image, outcome in zip(body.images, outcomes, strict=True):
        if isinstance(outcome, ServiceError):
            outcome.forget_frames()
            first_error = first_error or outcome
            error = {"status": outcome.status, "code": outcome.code, "detail": outcome.detail}
            results.append({"id": image.id, "status": "error", "error": error})
            record.failed += 1
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            results.append(outcome)
        gateway.metrics.images.labels(f"/{task}", model.contract.name, results[-1]["status"]).inc()
    if first_error and all(result["status"] == "error" for result in results):
        raise first_error
    return Answer(model, results)


def _is_gone(outcome: dict[str, Any] | BaseException) -> bool:
    return isinstance(outcome, UnavailableError) and outcome.code == "model_not_ready"


async def _one(
    gateway: Gateway,
    model: ServedModel,
    image: ImageInput,
    parameters: Parameters,
    deadline: float,
    record: RequestRecord,
) -> dict[str, Any]:
    """One picture's whole way."""
    if isinstance(image.data, ServiceError):
        raise image.data
    key = gateway.cache.key(model, image.data, parameters)
    seen = gateway.cache.find(key)
    if seen is None:
        seen = await _see(gateway, model, image.data, parameters, deadline, record)
        gateway.cache.keep(key, seen)
    clock = time.perf_counter()
    scores = seen.prediction.scores
    result = {"id": image.id, "status": "ok", "width": seen.width, "height": seen.height}
    result |= read_scores(model, seen.prediction, parameters)
    if parameters.explain:
        box = model.contract.preprocessing.source_box(seen.width, seen.height)
        result["heat_map_box"] = [round(side, 2) for side in box]
    best = int(scores.argmax())
    gateway.metrics.count_prediction(model.contract.name, model.labels[best], float(scores[best]))
    postprocess = time.perf_counter() - clock
    gateway.metrics.stage.labels("postprocess").observe(postprocess)
    gateway.tracing.stage(record, "postprocess", clock, postprocess)
    return result


async def _see(
    gateway: Gateway,
    model: ServedModel,
    data: bytes,
    parameters: Parameters,
    deadline: float,
    record: RequestRecord,
) -> Seen:
    """Decode a picture and have the model look at it."""
    clock = time.perf_counter()
    try:
        with model.batcher.expect():
            async with asyncio.timeout_at(deadline):
                prepared = await gateway.decoder(data, model.contract.preprocessing)
    except TimeoutError:
        raise DeadlineError from None
    decode = time.perf_counter() - clock
    gateway.tracing.stage(record, "decode", clock, decode)
    clock = time.perf_counter()
    picture = Picture(prepared.pixels, record.traceparent, parameters.embedding, parameters.explain)
    prediction, queue, infer = await model.batcher.submit(picture, deadline)
    gateway.tracing.stage(record, "queue", clock, queue)
    for name, seconds in (("decode", decode), ("queue", queue), ("infer", infer)):
        gateway.metrics.stage.labels(name).observe(seconds)
        record.times.raise_to(name, seconds)
    return Seen(prepared.width, prepared.height, prediction)


def check_parameters(model: ServedModel, parameters: Parameters) -> None:
    """Raise 422 if the parameters ask for heat maps that the model does not give, or name a label that it has not."""
    if parameters.explain and model.contract.heat_maps is None:
        detail = f"model {model.contract.name!r} gives no heat maps, so explain must be false"
        raise RequestError(422, "bad_parameter", detail)
    if not isinstance(parameters, TagParameters):
        return
    named = [*(parameters.include_labels or []), *(parameters.exclude_labels or [])]
    unknown = sorted(set(named) - set(model.labels)) if named else []
    if unknown:
        shown = ", ".join(label[:LONGEST_SHOWN] for label in unknown[:5])
        raise RequestError(422, "bad_parameter", f"model {model.contract.name!r} has no label {shown}")


def read_scores(model: ServedModel, prediction: Prediction, parameters: Parameters) -> dict[str, Any]:
    """Scores to labels: the best few for ``/classify``, those over their threshold for ``/tag``."""
    scores = prediction.scores
    answer: dict[str, Any] = {}
    if isinstance(parameters, ClassifyParameters):
        answer["predictions"] = [
            {"label": model.labels[i], "label_id": int(i), "score": _shown(scores[i])}
            for i in _highest(scores, parameters.top_k)
            if scores[i] >= parameters.min_score
        ]
    elif isinstance(parameters, TagParameters):
        answer["tags"] = _tags(model, scores, parameters)
    if parameters.explain and prediction.heat_maps is not None:
        for entry in answer.get("predictions", answer.get("tags", [])):
            heat_map = prediction.heat_maps.get(entry["label_id"])
            entry["heat_map"] = None if heat_map is None else np.round(heat_map.astype(float), 4).tolist()
    if parameters.embedding and prediction.embedding is not None:
        answer["embedding"] = prediction.embedding.tolist()
    return answer


def _shown(score: float) -> float:
    """To six digits, about what a float32 holds; its further digits as a double would be noise."""
    return float(f"{score:.6g}")


def _sorted(indices: npt.NDArray[np.intp], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """``indices`` by their scores, the best first; of equals the first."""
    return indices[np.argsort(-scores[indices], kind="stable")]


def _highest(scores: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Where the ``count`` highest are, in order. To sort thousands of labels would take a millisecond."""
    count = min(count, len(scores))
    least = np.partition(scores, -count)[-count]
    return _sorted(np.flatnonzero(scores >= least), scores)[:count]


def _tags(model: ServedModel, scores: npt.NDArray[np.float32], parameters: TagParameters) -> list[dict[str, Any]]:
    thresholds = model.thresholds if parameters.threshold is None else np.full_like(scores, parameters.threshold)
    included = None if parameters.include_labels is None else set(parameters.include_labels)
    excluded = set(parameters.exclude_labels or [])
    tags = [
        {"label": model.labels[i], "label_id": int(i), "score": _shown(scores[i]), "threshold": _shown(thresholds[i])}
        for i in _sorted(np.flatnonzero(scores >= thresholds), scores)
        if (included is None or model.labels[i] in included) and model.labels[i] not in excluded
    ]
    return tags[: parameters.max_tags]
