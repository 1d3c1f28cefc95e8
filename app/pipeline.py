"""The way of a request: its head → body → parameters → decode → batch → Triton → labels. Read :func:`ask`."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from app.admission import Admission
from app.answer_cache import AnswerCache, Seen
from app.body import Body, ImageInput, explained, read_body
from app.catalogue import Catalogue, Picture, ServedModel
from app.decoder import Decoder
from app.departure import cancelled_if_client_leaves
from app.draining import Draining
from app.errors import DeadlineError, DrainingError, ModelNotReadyError, RequestError, ServiceError, bad_parameter
from app.fetch import Fetcher
from app.keys import KeyRing
from app.metrics import Metrics
from app.parameters import Parameters, read_parameters
from app.record import RequestRecord
from app.scores import check_parameters, read_scores
from app.settings import Settings
from app.tracing import Tracing
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
    fetcher: Fetcher
    draining: Draining


@dataclass(frozen=True)
class Question:
    """What a request asks of each of its pictures, until when, and what is noted of it."""

    parameters: Parameters
    deadline: float  # on the loop's clock, seconds
    record: RequestRecord


@dataclass(frozen=True)
class Answer:
    """The model that answered, and one result a picture, in order."""

    model: ServedModel
    results: list[dict[str, Any]]
    parameters: Parameters


async def ask(gateway: Gateway, request: Request, task: Task, kind: type[Parameters]) -> Answer:
    """Take a request in, and answer it.

    Raises:
        ServiceError: if it cannot be taken, or if every picture failed (the first one's error).
    """
    if gateway.draining.refuses:
        raise DrainingError
    record: RequestRecord = request.state.record
    gateway.keys.take(record.key, 0)  # before the body costs anything
    deadline = asyncio.get_running_loop().time() + _timeout_s(request, gateway.settings)
    gateway.admission.check()
    with gateway.admission.hold_bytes() as take:
        body = await read_body(request, gateway.settings, take, deadline)
        record.images = len(body.images)
        gateway.keys.take(record.key, record.images)
        parameters = read_parameters(kind, request.query_params, body.parameters)
        async with cancelled_if_client_leaves(request):
            if body.urls:
                body = await gateway.fetcher.fill(body, deadline, record, take)
            try:
                return await _answer(gateway, task, body, Question(parameters, deadline, record))
            except RequestError as error:
                raise explained(error, body) from error


def _timeout_s(request: Request, settings: Settings) -> float:
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return settings.request_timeout_ms / 1000
    if not re.fullmatch(r"[0-9]{1,15}", given) or int(given) < 1:
        raise bad_parameter("X-Request-Timeout-Ms must be a whole number of milliseconds above 0")
    return min(int(given), settings.request_timeout_ms) / 1000


async def _answer(gateway: Gateway, task: Task, body: Body, question: Question) -> Answer:
    """Answer every picture of ``body``; one that fails fails alone.

    Raises:
        ServiceError: if the request cannot be taken, or if every picture failed (the first one's error).
    """
    parameters, record = question.parameters, question.record
    with gateway.admission.admit(len(body.images)):
        while True:
            model = gateway.catalogue.find(task, parameters.model, parameters.version)
            record.model, record.version = model.contract.name, model.contract.version
            check_parameters(model, parameters)
            outcomes = await asyncio.gather(
                *(_one(gateway, model, image, question) for image in body.images), return_exceptions=True
            )
            if not any(isinstance(outcome, ModelNotReadyError) for outcome in outcomes):
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
    return Answer(model, results, parameters)


async def _one(gateway: Gateway, model: ServedModel, image: ImageInput, question: Question) -> dict[str, Any]:
    """One picture's whole way."""
    parameters = question.parameters
    if isinstance(image.data, ServiceError):
        raise image.data
    key = gateway.cache.key(model, image.data, parameters)
    seen = gateway.cache.find(key)
    if seen is None:
        seen = await _see(gateway, model, image.data, question)
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
    gateway.tracing.stage(question.record, "postprocess", clock, postprocess)
    return result


async def _see(gateway: Gateway, model: ServedModel, data: bytes, question: Question) -> Seen:
    """Decode a picture and have the model look at it."""
    parameters, record = question.parameters, question.record
    clock = time.perf_counter()
    try:
        with model.batcher.expect():
            async with asyncio.timeout_at(question.deadline):
                prepared = await gateway.decoder(data, model.contract.preprocessing)
    except TimeoutError:
        raise DeadlineError from None
    decode = time.perf_counter() - clock
    gateway.tracing.stage(record, "decode", clock, decode)
    clock = time.perf_counter()
    picture = Picture(prepared.pixels, record.traceparent, parameters.embedding, parameters.explain)
    prediction, queue, infer = await model.batcher.submit(picture, question.deadline)
    gateway.tracing.stage(record, "queue", clock, queue)
    for name, seconds in (("decode", decode), ("queue", queue), ("infer", infer)):
        gateway.metrics.stage.labels(name).observe(seconds)
        record.times.raise_to(name, seconds)
    return Seen(prepared.width, prepared.height, prediction)
