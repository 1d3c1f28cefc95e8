"""The HTTP side: routes, headers, problem documents. What happens to a request is in :mod:`app.pipeline`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import tresnet
from app.access import KeyGate
from app.admission import Admission
from app.answer_cache import AnswerCache
from app.batch_run import BatchRuns
from app.catalogue import Catalogue, ServedModel
from app.decoder import Decoder
from app.departure import UnreadBodies
from app.draining import CloseConnections, Draining
from app.errors import DrainingError, ModelNotReadyError, RequestError, TritonAwayError
from app.fetch import Fetcher, PublicNetwork
from app.frame import RequestFrame, problem_response
from app.keys import KeyRing
from app.large_answer import PIECE_BYTES, LargeAnswer
from app.metrics import Metrics
from app.model_watch import ModelWatch
from app.openapi import (
    LIVE,
    METRICS,
    MODEL,
    MODEL_PARAMETERS,
    MODELS,
    READY,
    READY_PARAMETERS,
    answers,
    complete,
    question,
)
from app.page import add_pages
from app.parameters import ClassifyParameters, TagParameters
from app.pipeline import Answer, Gateway, ask
from app.record import RequestRecord
from app.settings import Settings
from app.tracing import create_tracing
from app.triton import TritonClient

logger = logging.getLogger(__name__)


def create_app(settings: Settings, *, network: PublicNetwork | None = None) -> FastAPI:
    """The gateway as an ASGI application; Triton is reached when it starts.

    ``network`` is a seam for tests, whose pictures lie on machines that are not public.

    Raises:
        ValueError: if ``settings`` name no Triton; :func:`app.server.run` starts one and puts its address there.
    """
    if settings.triton_url is None:
        raise ValueError("the settings name no Triton")
    draining = Draining()
    metrics = Metrics(settings.max_metric_labels)
    decoder = Decoder(settings)
    triton = TritonClient(
        settings.triton_url,
        shared_memory=settings.shared_memory,
        silence_timeout_s=1.5 * settings.triton_live_timeout_ms / 1000,  # before two looks in a row have met it
    )
    tracing = create_tracing(settings)
    catalogue = Catalogue(settings.default_models)
    runs = BatchRuns(triton, catalogue, metrics, tracing)
    watch = ModelWatch(triton, decoder, settings, metrics, catalogue, runs)
    admission = Admission(settings.max_queue_images, settings.max_queue_bytes, settings.overload_status)
    keys = KeyRing(Path(settings.api_keys_file) if settings.api_keys_file else None, metrics)
    cache = AnswerCache(settings.answer_cache_bytes, metrics)
    fetcher = Fetcher(settings, metrics, tracing, network or PublicNetwork())
    gateway = Gateway(settings, metrics, catalogue, decoder, admission, cache, keys, tracing, fetcher, draining)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await decoder.start()
        await keys.start()
        await triton.start()
        await watch.start()
        with draining.on_signals(settings):
            yield
        await watch.close()
        await triton.close()
        await keys.close()
        await decoder.close()
        await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="TResNet Serving",
        version=tresnet.__version__,
        description="Pictures in, labels out: TResNet models on NVIDIA Triton.",
        lifespan=lifespan,
        docs_url=None,  # app/page.py has one that asks no other site
        redoc_url=None,
        redirect_slashes=False,  # to where a proxy's clients may not reach
        telemetry={"tracing": False, "metrics": False, "logs": False},  # app/tracing.py has its own, at less cost
    )
    app.add_exception_handler(HTTPException, _http_exception)
    _add_answer_routes(app, gateway)
    _add_state_routes(app, gateway)
    add_pages(app)
    complete(app, wants_keys=settings.api_keys_file is not None)
    _add_layers(app, gateway)
    return app


def _add_layers(app: FastAPI, gateway: Gateway) -> None:
    """From the innermost to the outermost."""
    if gateway.settings.api_keys_file:
        app.add_middleware(KeyGate, keys=gateway.keys)
    routes = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.add_middleware(RequestFrame, metrics=gateway.metrics, tracing=gateway.tracing, routes=routes)
    app.add_middleware(CloseConnections, draining=gateway.draining)
    if gateway.settings.cors_origins:
        # Outside of the frame, so that a page may read errors, too. A preflight brings no key and needs none.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=gateway.settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "X-Request-Timeout-Ms"),
            expose_headers=("Retry-After", "Server-Timing", "X-Request-ID"),
        )
    app.add_middleware(UnreadBodies)


def _add_answer_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.post(
        "/classify", summary="The picture's label", operation_id="classify", tags=["Ask"],
        responses=answers("classify"), openapi_extra=question("classify", ClassifyParameters),
    )  # fmt: skip
    async def classify(request: Request) -> Response:
        """One label wins: the best `top_k` labels of each picture, with their scores."""
        return _answered(gateway, request, await ask(gateway, request, "classify", ClassifyParameters))

    @app.post(
        "/tag", summary="The picture's tags", operation_id="tag", tags=["Ask"], responses=answers("tag"),
        openapi_extra=question("tag", TagParameters),
    )  # fmt: skip
    async def tag(request: Request) -> Response:
        """Each label by itself: those whose score reaches their threshold, best first."""
        return _answered(gateway, request, await ask(gateway, request, "tag", TagParameters))


def _add_state_routes(app: FastAPI, gateway: Gateway) -> None:
    catalogue = gateway.catalogue

    @app.get(
        "/models", summary="The models that are ready", operation_id="list_models", tags=["Models"], responses=MODELS
    )
    async def models() -> Response:
        """Each ready model's contract."""
        return _json({"models": [_described(catalogue, model) for _, model in sorted(catalogue.live.items())]})

    @app.get(
        "/models/{name}", summary="One model and its card", operation_id="get_model", tags=["Models"], responses=MODEL,
        openapi_extra=MODEL_PARAMETERS,
    )  # fmt: skip
    async def model(request: Request) -> Response:
        """The contract of a model's version, the highest by default, and its model card in Markdown, if it has one."""
        found = catalogue.named(request.path_params["name"], request.query_params.get("version"))
        return _json({**_described(catalogue, found), "card": found.contract.facts.card})

    @app.get("/livez", summary="The process is up", operation_id="live", tags=["State"], responses=LIVE)
    @app.get("/v2/health/live", include_in_schema=False)
    async def livez() -> Response:
        return _json({"status": "live"})

    @app.get(
        "/readyz", summary="Every served model answers", operation_id="ready", tags=["State"], responses=READY,
        openapi_extra=READY_PARAMETERS,
    )  # fmt: skip
    @app.get("/v2/health/ready", include_in_schema=False)
    async def readyz(request: Request) -> Response:
        """Ready when all models are; with `models=any`, once that was so, as long as one of them answers.

        The second is for load balancers: one model that fails at every Triton would have all replicas taken out, with
        the models that answer.
        """
        any_is_enough = request.query_params.get("models") == "any"
        if gateway.draining.has_begun:
            raise DrainingError
        if not (catalogue.is_ready or (any_is_enough and catalogue.is_of_use)):
            why = ModelNotReadyError if catalogue.triton_is_up else TritonAwayError
            raise why("; ".join(catalogue.problems) or "no model is ready")
        failed = [
            {"model": name, "version": version, "reason": reason}
            for (name, version), reason in sorted(catalogue.failed.items())
        ]
        return _json({"status": "ready", "models": sorted({name for name, _ in catalogue.live}), "failed": failed})

    @app.get(
        "/metrics", summary="Prometheus metrics", operation_id="metrics", tags=["State"], responses=METRICS,
        response_class=PlainTextResponse,
    )  # fmt: skip
    async def prometheus() -> Response:
        return Response(gateway.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _answered(gateway: Gateway, request: Request, found: Answer) -> Response:
    record: RequestRecord = request.state.record
    document: Any = _as_hf(found) if found.parameters.format == "hf" else _document(record.request_id, found)
    content, headers = orjson.dumps(document), {"Server-Timing": record.times.header()}
    if len(content) > PIECE_BYTES:
        return LargeAnswer(content, gateway.admission, headers)
    return Response(content, media_type="application/json", headers=headers)


def _described(catalogue: Catalogue, model: ServedModel) -> dict[str, Any]:
    return {**model.contract.listed(), "labels": model.labels, "is_default": catalogue.is_default(model)}


def _document(request_id: str, found: Answer) -> dict[str, Any]:
    contract = found.model.contract
    model = {"name": contract.name, "version": contract.version, "task": contract.task}
    return {"request_id": request_id, "model": model, "results": found.results}


def _as_hf(found: Answer) -> list[Any]:
    """One picture: a list of label and score. Several: a list of such lists; a failed picture's is empty."""
    lists = [
        [
            {"label": entry["label"], "score": entry["score"]}
            for entry in result.get("predictions", result.get("tags", []))
        ]
        for result in found.results
    ]
    return lists[0] if len(lists) == 1 else lists


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (unknown path, wrong method) in the same form as ours."""
    assert isinstance(error, HTTPException)  # noqa: S101
    codes = {404: "not_found", 405: "method_not_allowed"}
    details = {
        404: f"there is nothing at {request.url.path}; GET /docs lists the routes",
        405: f"{request.url.path} does not take {request.method}",
    }
    fault = RequestError(
        error.status_code,
        codes.get(error.status_code, "malformed_request"),
        details.get(error.status_code, str(error.detail)),
    )
    record: RequestRecord = request.state.record
    record.code = fault.code
    response = problem_response(fault, request.url.path, record.request_id)
    response.headers.update(error.headers or {})
    return response
