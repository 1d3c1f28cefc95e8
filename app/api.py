"""The HTTP side: routes, headers, problem documents. What happens to a picture is in :mod:`app.pipeline`."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import orjson
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import tresnet
from app.admission import Admission
from app.body import read_body
from app.catalogue import Catalogue
from app.errors import OverloadError, RequestError, ServiceError, UnavailableError, bad_parameter, problem
from app.metrics import Metrics
from app.openapi import PROBLEMS, answer_schema, request_body
from app.parameters import ClassifyParameters, Parameters, TagParameters, read_parameters
from app.pipeline import Answer, Decoder, Gateway, StageTimes, answer
from app.settings import Settings
from app.triton import TritonClient
from tresnet.contract import Task

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class State:
    """What the process knows beside requests: whether it drains."""

    def __init__(self) -> None:
        self.draining = False

    @contextmanager
    def drains_on_signals(self, delay_s: float) -> Iterator[None]:
        """Drain from the moment a stop is asked for; the server's own handler, which closes the port, comes later.

        In between, clients and load balancers are told by 503 instead of finding a connection reset. A second SIGINT
        does not wait. Called in the event loop's thread; does nothing outside the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)}
        interrupts = 0

        def stop(number: int, frame: FrameType | None) -> None:
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)

        def drain(number: int, frame: FrameType | None) -> None:
            nonlocal interrupts
            interrupts += number == signal.SIGINT
            if not self.draining:
                self.draining = True
                logger.info("%s: finishing the requests in flight", signal.Signals(number).name)
                loop.call_soon_threadsafe(loop.call_later, delay_s, stop, signal.SIGTERM, None)
            elif interrupts > 1:
                stop(number, frame)

        for sig in before:
            signal.signal(sig, drain)
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def create_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application; Triton is reached when it starts."""
    state = State()
    metrics = Metrics(settings.max_metric_labels)
    decoder = Decoder(settings)
    triton = TritonClient(settings.triton_url or "grpc://127.0.0.1:8001")
    catalogue = Catalogue(triton, decoder, settings, metrics)
    gateway = Gateway(
        settings, metrics, catalogue, decoder, Admission(settings.max_queue_images, settings.overload_status)
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await triton.start()
        await catalogue.start()
        with state.drains_on_signals(settings.drain_delay_s):
            yield
        await catalogue.close()
        await triton.close()
        decoder.close()

    app = FastAPI(
        title="TResNet Serving",
        version=tresnet.__version__,
        description="Pictures in, labels out: TResNet models on NVIDIA Triton.",
        lifespan=lifespan,
    )
    app.add_middleware(RequestFrame, metrics=metrics)
    app.add_exception_handler(HTTPException, _http_exception)
    _add_answer_routes(app, gateway, state)
    _add_state_routes(app, gateway, state)
    return app


def _add_answer_routes(app: FastAPI, gateway: Gateway, state: State) -> None:
    async def handle(request: Request, task: Task, kind: type[Parameters]) -> Response:
        if state.draining:
            raise UnavailableError("draining", "this server is shutting down; try again")
        times = StageTimes()
        deadline = asyncio.get_running_loop().time() + _timeout_s(request, gateway.settings)
        body = await read_body(request, gateway.settings)
        parameters = read_parameters(kind, request.query_params, body.parameters)
        found = await answer(
            gateway,
            task,
            body,
            parameters,
            deadline=deadline,
            times=times,
            traceparent=request.headers.get("traceparent"),
        )
        document: Any = _as_hf(found) if parameters.format == "hf" else _document(request.state.request_id, found)
        return _json(document, headers={"Server-Timing": times.header()})

    @app.post(
        "/classify", summary="The picture's label", responses=PROBLEMS | answer_schema("classify"),
        openapi_extra=request_body(ClassifyParameters),
    )  # fmt: skip
    async def classify(request: Request) -> Response:
        """One label wins: the best `top_k` labels of each picture, with their scores."""
        return await handle(request, "classify", ClassifyParameters)

    @app.post(
        "/tag", summary="The picture's tags", responses=PROBLEMS | answer_schema("tag"),
        openapi_extra=request_body(TagParameters),
    )  # fmt: skip
    async def tag(request: Request) -> Response:
        """Each label by itself: those whose score reaches their threshold, best first."""
        return await handle(request, "tag", TagParameters)


def _add_state_routes(app: FastAPI, gateway: Gateway, state: State) -> None:
    catalogue = gateway.catalogue

    @app.get("/models", summary="The models that are ready")
    async def models() -> Response:
        """Each ready model's contract."""
        described = [
            {**model.contract.model_dump(exclude={"facts": {"golden"}}), "labels": model.labels}
            for _, model in sorted(catalogue.live.items())
        ]
        return _json({"models": described})

    @app.get("/livez", summary="The process is up")
    @app.get("/v2/health/live", include_in_schema=False)
    async def livez() -> Response:
        return _json({"status": "live"})

    @app.get("/readyz", summary="Every served model answers", responses={503: PROBLEMS[503]})
    @app.get("/v2/health/ready", include_in_schema=False)
    async def readyz() -> Response:
        if state.draining:
            raise UnavailableError("draining", "this server is shutting down")
        if not catalogue.is_ready:
            code = "model_not_ready" if catalogue.triton_is_up else "triton_unavailable"
            raise UnavailableError(code, "; ".join(catalogue.problems) or "no model is ready")
        return _json({"status": "ready", "models": sorted({name for name, _ in catalogue.live})})

    @app.get("/metrics", summary="Prometheus metrics")
    async def prometheus() -> Response:
        return Response(gateway.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return HTMLResponse(
            "<!doctype html><html lang=en><title>TResNet Serving</title><h1>TResNet Serving</h1>"
            "<p>Post a picture to <code>/classify</code> or <code>/tag</code>. "
            "<a href=/docs>The API</a>, <a href=/models>the models</a>.</p></html>"
        )


class RequestFrame:
    """Around every request: its id, its errors as problem documents, its count and duration."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500
        begun = False

        async def send_framed(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, send_framed)
        except ServiceError as error:
            if isinstance(error, OverloadError) or error.code in ("draining", "body_too_large", "too_many_images"):
                self.metrics.rejected.labels(error.code).inc()
            await _problem_response(error, scope["path"], request_id)(scope, receive, send_framed)
        except Exception:
            if begun:
                raise
            logger.exception("request %s failed", request_id)
            fault = ServiceError("an unexpected fault; it was logged under the request's id")
            await _problem_response(fault, scope["path"], request_id)(scope, receive, send_framed)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.requests.labels(route, scope["method"], str(status)).inc()
            self.metrics.duration.labels(route).observe(time.perf_counter() - started)


def _timeout_s(request: Request, settings: Settings) -> float:
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return settings.request_timeout_ms / 1000
    if not given.isascii() or not given.isdecimal() or int(given) < 1:
        raise bad_parameter("X-Request-Timeout-Ms must be a whole number of milliseconds above 0")
    return min(int(given), settings.request_timeout_ms) / 1000


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


def _json(document: Any, *, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(document), media_type="application/json", headers=headers)


def _problem_response(error: ServiceError, instance: str, request_id: str) -> Response:
    return Response(
        orjson.dumps(problem(error, instance=instance, request_id=request_id)),
        status_code=error.status,
        media_type="application/problem+json",
        headers=error.headers,
    )


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
    response = _problem_response(fault, request.url.path, request.state.request_id)
    response.headers.update(error.headers or {})
    return response
