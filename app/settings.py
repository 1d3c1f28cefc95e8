"""Every setting of the gateway, read once at the start from ``TRESNET_<NAME>`` and the command line."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.triton_url import channel_target
from tresnet.errors import UserError

_PREFIX = "TRESNET_"


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
    repository: str = Field("model_repository", description="Model repository of the bundled Triton.")
    triton_home: str | None = Field(
        None, description="Where nvidia-pytriton is unpacked; by default in the environment."
    )
    log_dir: str = Field("logs", description="Folder for the bundled Triton's log.")
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body, in bytes.")
    max_pixels: int = Field(64_000_000, ge=400, description="Most pixels in one picture.")
    max_images: int = Field(64, ge=1, description="Most pictures in one request.")
    max_queue_images: int = Field(512, ge=1, description="Most pictures admitted at once: decoding, queued, in flight.")
    overload_status: Literal[429, 503] = Field(503, description="Status when the queue is full.")
    decode_threads: int | None = Field(
        None, ge=1, description="Threads that decode pictures in each process; by default the cores, shared out."
    )
    batches_in_flight: int = Field(2, ge=1, le=64, description="Batches that Triton works on at once, for each model.")
    request_timeout_ms: int = Field(
        30_000, ge=1, description="Deadline of a request, and the bound of the client's own."
    )
    body_timeout_ms: int = Field(30_000, ge=1, description="Time that a client has to send its body.")
    drain_delay_s: float = Field(
        0.5, ge=0, description="Time from a stop to closing the port, in which new requests are answered with 503."
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="Time that requests in flight get to finish at a stop.")
    triton_poll_ms: int = Field(1000, ge=50, description="How often Triton's state is looked at.")
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
    def decode_threads_per_worker(self) -> int:
        """As asked for, else every core decodes once, and one thread more hides the waits."""
        cores = len(os.sched_getaffinity(0))
        return self.decode_threads or max(1, min(32, (cores + 1) // self.workers))


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, with the command line's values over them.

    Raises:
        UserError: for an unknown ``TRESNET_`` variable or a value that does not fit, naming it.
    """
    known = {f"{_PREFIX}{name.upper()}" for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(_PREFIX) and name.upper() not in known)
    if unknown:
        raise UserError(f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        fault = error.errors()[0]
        name = f"{_PREFIX}{str(fault['loc'][0]).upper()}"
        raise UserError(f"setting {name}: {fault['msg']}, got {fault['input']!r}") from error


def settings_table() -> str:
    """``docs/settings.md``: every setting with its default and meaning."""
    rows = [
        f"| `{_PREFIX}{name.upper()}` | {'' if field.default is None else f'`{field.default}`'} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return (
        "# Settings of the gateway\n\n"
        "Each is an environment variable; the options of `tresnet serve` come before them. "
        "An unknown `TRESNET_` variable or a bad value stops the start.\n\n"
        "| variable | default | meaning |\n|---|---|---|\n"
        + "\n".join(rows)
        + "\n\nMade from `app/settings.py` by `make render`.\n"
    )
