"""Every setting of the gateway, read once at the start from ``TRESNET_<NAME>`` and the command line."""

from __future__ import annotations

import difflib
import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.triton_url import channel_target
from tresnet.cores import usable_cores
from tresnet.errors import UserError

_PREFIX = "TRESNET_"
_CLIENT_KEY = "TRESNET_API_KEY"
_CLIENT_URL = "TRESNET_URL"


def _split(value: object) -> object:
    """``a, b`` in a variable means two."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _host(text: str) -> str:
    if re.fullmatch(r"((\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", text.lower()) is None:
        raise ValueError(f"{text!r} is no host: NAME, *.SUFFIX or [IPV6], perhaps with :PORT, and no URL")
    return text.lower()


Host = Annotated[str, AfterValidator(_host)]
Hosts = Annotated[tuple[Host, ...], NoDecode, BeforeValidator(_split)]
Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Schemes = Annotated[tuple[Literal["https", "http"], ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]


def _number(value: object) -> object:
    """A choice among numbers is not read from text by itself."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class Settings(BaseSettings):
    """Frozen and validated; a bad value or an unknown ``TRESNET_`` variable stops the start."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=256, description="Gateway processes; limits on the queue are each process's own.")
    triton_url: str | None = Field(
        None,
        description="Triton: grpc://HOST:PORT, all of whose addresses take turns, or grpc://IP:PORT,IP:PORT; "
        "none starts the bundled one.",
    )
    shared_memory: bool = Field(
        True, description="Give pixels to a Triton at a loopback address through shared memory, if it takes them."
    )
    repository: str = Field("model_repository", description="Model repository of the bundled Triton.")
    default_models: Texts = Field(
        (),
        description="Models for requests that name none, separated by commas: the first of them that is served and "
        "fits the route answers. Without it, such a request is answered only where one model fits.",
    )
    triton_home: str | None = Field(
        None, description="Where nvidia-pytriton is unpacked; by default in the environment."
    )
    triton_metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port of the bundled Triton's own Prometheus metrics; none keeps it closed."
    )
    triton_metrics_host: str = Field("127.0.0.1", description="Address that the bundled Triton's metrics listen on.")
    log_format: Literal["json", "text"] | None = Field(
        None, description="Form of the log on stderr; by default text to a terminal, JSON to anything else."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged; at debug, probes and scrapes get their lines, too."
    )
    tracing: bool = Field(
        False,
        description="Send OpenTelemetry traces, to where the standard OTEL_EXPORTER_OTLP_* variables say; needs the "
        "extra `tracing`.",
    )
    api_keys_file: str | None = Field(
        None,
        description="File of API keys, NAME:SHA256HEX[:IMAGES_PER_SECOND] a line; read anew within 2 s of a change. "
        "Without it, everybody may ask.",
    )
    cors_origins: Texts = Field(
        (), description="Origins whose pages may ask from a browser, separated by commas; * for all, none by default."
    )
    tls_certificate: str | None = Field(
        None, description="PEM file of the certificate and its chain, to serve HTTPS; read once at the start."
    )
    tls_key: str | None = Field(None, description="PEM file of the certificate's private key.")
    url_hosts: Hosts = Field(
        (),
        description="Hosts from which pictures may be fetched by URL: NAME, *.SUFFIX, each also with :PORT, separated "
        "by commas; none by default. An address that is not public is refused whatever its name.",
    )
    url_schemes: Schemes = Field(("https",), description="Schemes of those URLs: https, http, or both.")
    log_dir: str = Field("logs", description="Folder for the bundled Triton's log.")
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body, in bytes.")
    max_pixels: int = Field(64_000_000, ge=400, description="Most pixels in one picture.")
    max_images: int = Field(64, ge=1, description="Most pictures in one request.")
    max_queue_images: int = Field(512, ge=1, description="Most pictures admitted at once: decoding, queued, in flight.")
    max_queue_bytes: int = Field(
        512 * 2**20, ge=1024, description="Most bytes of bodies held at once, as sent: arriving, waiting, in work."
    )
    overload_status: Annotated[Literal[429, 503], BeforeValidator(_number)] = Field(
        503, description="Status when the queue is full."
    )
    decode_processes: int | None = Field(
        None,
        ge=1,
        description="Processes that decode pictures, for each worker; by default one for each core that affinity and "
        "the container's CPU quota allow, shared out over the workers.",
    )
    decode_timeout_ms: int = Field(10_000, ge=100, description="Longest time that decoding one picture may take.")
    answer_cache_bytes: int = Field(
        0,
        ge=0,
        description="Most memory for answers, in each worker: a picture that comes again, byte for byte, is answered "
        "from there while the same version serves; 0 keeps none.",
    )
    batches_in_flight: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Batches of a model that a worker has at Triton at once; by default one at the bundled Triton, "
        "and two at any other.",
    )
    request_timeout_ms: int = Field(
        30_000, ge=1, description="Deadline of a request, and the bound of the client's own."
    )
    body_timeout_ms: int = Field(30_000, ge=1, description="Time that a client has to send its body.")
    keep_alive_s: int = Field(
        125,
        ge=1,
        description="Time for which an idle connection is kept, and in which a client has to read half of the answer "
        "that waits for it. Longer than clients and balancers keep theirs, so that none of them asks on one that is "
        "just being closed: httpx 5 s, nginx and ALB 60 s, Go 90 s, Caddy 120 s.",
    )
    drain_delay_s: float = Field(
        0.5, ge=0, description="Time from a stop in which requests are still served while /readyz says 503."
    )
    drain_refuse_s: float = Field(
        0.5, ge=0, description="Time after that in which new requests are answered with 503; then the port closes."
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="Time that requests in flight get to finish at a stop.")
    triton_poll_ms: int = Field(1000, ge=50, description="How often Triton's state is looked at.")
    triton_live_timeout_ms: int = Field(
        2500,
        ge=50,
        description="A Triton that twice takes longer to say that it lives counts as away, and its calls end with 503.",
    )
    triton_hang_timeout_s: float = Field(
        60.0,
        ge=1,
        description="The bundled Triton is killed and started again when it has not answered for so long; a model's "
        "process in it when one batch takes so long, and longer than TRESNET_REQUEST_TIMEOUT_MS.",
    )
    golden_check_s: float = Field(60.0, ge=1, description="How often a served version's golden picture is asked again.")
    max_metric_labels: int = Field(
        100, ge=0, description="Labels with a counter of their own; the rest count as other."
    )

    @field_validator("triton_url")
    @classmethod
    def _names_servers(cls, url: str | None) -> str | None:
        if url is not None:
            channel_target(url)
        return url

    @property
    def decode_processes_per_worker(self) -> int:
        """As asked for, else one for each core, shared out."""
        return self.decode_processes or max(1, min(32, usable_cores() // self.workers))


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, with the command line's values over them.

    Raises:
        UserError: for an unknown ``TRESNET_`` variable or a value that does not fit, naming it.
    """
    if os.environ.get(_CLIENT_KEY) and not (overrides.get("api_keys_file") or os.environ.get("TRESNET_API_KEYS_FILE")):
        raise UserError(
            f"{_CLIENT_KEY} is the client's, and would leave the gateway open to everybody: give the gateway the file "
            "TRESNET_API_KEYS_FILE, or unset it"
        )
    known = {f"{_PREFIX}{name.upper()}" for name in Settings.model_fields}
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(_PREFIX) and name.upper() not in known | {_CLIENT_KEY, _CLIENT_URL}
    )
    if unknown:
        raise UserError(f"{'; '.join(_unknown(name, known) for name in unknown)}; docs/settings.md lists all")
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        fault = error.errors()[0]
        name = f"{_PREFIX}{str(fault['loc'][0]).upper()}"
        raise UserError(f"setting {name}: {fault['msg']}, got {fault['input']!r}") from error


def _unknown(name: str, known: set[str]) -> str:
    nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8)
    return f"unknown setting {name}" + (f" (did you mean {nearest[0]}?)" if nearest else "")


def settings_table() -> str:
    """``docs/settings.md``: every setting with its default and meaning."""
    rows = [
        f"| `{_PREFIX}{name.upper()}` | {_shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return (
        "# Settings of the gateway\n\n"
        "Each is an environment variable; the options of `tresnet serve` come before them. "
        "An unknown `TRESNET_` variable or a bad value stops the start; `TRESNET_URL` and `TRESNET_API_KEY` are "
        "[its clients'](client.md).\n\n"
        "| variable | default | meaning |\n|---|---|---|\n"
        + "\n".join(rows)
        + "\n\nMade from `app/settings.py` by `make render`.\n"
    )


def _shown(default: object) -> str:
    value = ",".join(default) if isinstance(default, tuple) else default
    return "" if value in (None, "") else f"`{value}`"
