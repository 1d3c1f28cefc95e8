"""Running the gateway: uvicorn in this process or in several, the bundled Triton beside it unless another is named."""

from __future__ import annotations

import functools
import gc
import os
import resource
import signal
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from app.api import create_app
from app.bundled_triton import BundledTriton, default_home
from app.freed_memory import keep_freed_memory
from app.keys import read_keys
from app.logs import configure_logging
from app.metrics import MULTIPROCESS_DIR
from app.parent import end_with_parent
from app.port import check_port
from app.protocol import BoundedHeadProtocol
from app.settings import Settings
from app.temporary_folder import temporary_folder
from app.tracing import create_tracing, triton_trace_options
from tresnet.errors import UserError

_ENOUGH_DESCRIPTORS = 2**16
_WORKER_HEALTHCHECK_S = 15
_OBJECTS_PER_COLLECTION = 20_000
"""Requests leave no reference cycles behind, for which Python looks, as a rule, whenever there are 700 new objects:
always, with hundreds of requests in flight, and for a fifth of this process's time."""
_BUNDLED_IN_FLIGHT = 1
"""A second one would only wait there (docs/decisions/0004-batch-when-busy.md)."""


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; answer what is in flight; leave no process behind.

    Raises:
        UserError: if the bundled Triton cannot be started, or the port is taken.
    """
    configure_logging(settings.log_format, settings.log_level)
    _check_files(settings)
    check_port(settings, "give another one by --port")
    _allow_descriptors()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whenever it comes, what was started is stopped
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        if settings.triton_url is None:
            settings = stack.enter_context(_bundled_triton(settings))
        if settings.workers > 1:
            folder = stack.enter_context(temporary_folder("tresnet-metrics-"))
            os.environ[MULTIPROCESS_DIR] = str(folder)
        config = uvicorn.Config(
            functools.partial(build_app, settings, os.getpid()),
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            loop="uvloop",
            http=BoundedHeadProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=int(settings.drain_timeout_s),
            timeout_worker_healthcheck=_WORKER_HEALTHCHECK_S,
        )
        try:
            if settings.workers == 1:
                uvicorn.Server(config).run()
            else:
                _Workers(config, sockets=[config.bind_socket()]).run()
        except SystemExit as error:  # uvicorn exits so when it cannot listen; it has logged why
            raise UserError(f"the gateway could not start on {settings.host}:{settings.port}") from error


class _Workers(Multiprocess):
    """uvicorn's worker processes, whose parent does not hold the port open once they stop listening."""

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()
        super().terminate_all()


def build_app(settings: Settings, parent: int) -> FastAPI:
    """The application in the process that serves it: ``parent`` itself, or one of its workers."""
    if os.getpid() != parent:
        configure_logging(settings.log_format, settings.log_level)
        end_with_parent(signal.SIGTERM)
    keep_freed_memory()
    app = create_app(settings)
    # What is there by now stays. To look through it for cycles held up every request for 30 ms, once in a thousand.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION)
    return app


def _allow_descriptors() -> None:
    """Each connection takes one, and the usual limit of 1,024 is meant for programs that call select(2)."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(allowed, min(most, _ENOUGH_DESCRIPTORS)), most))


@contextmanager
def _bundled_triton(settings: Settings) -> Iterator[Settings]:
    """The settings with the address of a Triton that lives as long as the context."""
    home = Path(settings.triton_home) if settings.triton_home else default_home()
    triton = BundledTriton(
        Path(settings.repository),
        home,
        Path(settings.log_dir),
        _triton_options(settings),
        hang_timeout_s=settings.triton_hang_timeout_s,
        run_timeout_s=max(settings.triton_hang_timeout_s, settings.request_timeout_ms / 1000),
    )
    triton.start()
    try:
        in_flight = settings.batches_in_flight or _BUNDLED_IN_FLIGHT
        yield settings.model_copy(update={"triton_url": triton.url, "batches_in_flight": in_flight})
    finally:
        triton.stop()


def _triton_options(settings: Settings) -> list[str]:
    """What the settings open of the bundled Triton beside its gRPC port: its metrics, its traces."""
    if settings.triton_metrics_port is None:
        options = ["--allow-metrics=false"]
    else:
        address = f"--metrics-address={settings.triton_metrics_host}"
        options = ["--allow-metrics=true", address, f"--metrics-port={settings.triton_metrics_port}"]
    return options + triton_trace_options(settings)


def _check_files(settings: Settings) -> None:
    """What the operator named must be there and be right before anything is started.

    Raises:
        UserError: naming the file.
    """
    create_tracing(settings).close()
    if settings.api_keys_file:
        read_keys(Path(settings.api_keys_file))
    certificate, key = settings.tls_certificate, settings.tls_key
    if (certificate is None) != (key is None):
        raise UserError("TLS needs both a certificate and its key")
    if certificate is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        except OSError as error:  # ssl.SSLError is one
            raise UserError(f"the TLS certificate {certificate} with the key {key}: {error}") from error
