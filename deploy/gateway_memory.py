"""Whether a gateway's limit on memory holds the most that its settings let in: beyond it the kernel kills.

``python deploy/gateway_memory.py`` looks at docker-compose.yml, and whether .env and docs/operations.md give the
numbers that come out here; ``deploy/kubernetes/check.py`` asks for its manifests.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from app.settings import Settings

_ROOT = Path(__file__).resolve().parents[1]
_COMPOSE = _ROOT / "docker-compose.yml"
_TOLD_IN = (_ROOT / ".env", _ROOT / "docs" / "operations.md")
_MI, _GI = 2**20, 2**30
_UNITS = {"Mi": _MI, "Gi": _GI, "m": _MI, "g": _GI}
_PREFIX = "TRESNET_"

_WORKER_BYTES = 128 * _MI
_DECODER_BYTES = 32 * _MI
_BYTES_A_PIXEL = 17
"""Of the picture that is decoded: docs/decisions/0007-pictures-from-strangers.md."""
_BYTES_A_FORMS_BYTE = 2
"""While forms are taken apart: 16 of 31 MiB at once took 1.0 GB."""
_WAITING_PICTURE_BYTES = 448 * 448 * 3
_BESIDE_BYTES = (128 + 64) * _MI
"""The workers' parent, and what lies in /tmp, which is memory."""


def most_bytes(settings: Settings) -> int:
    """All decoding processes at a picture of the largest size while the queue is full, in every worker."""
    # The file is there twice: as the gateway shares it, and as the decoder reads it.
    decoder = _DECODER_BYTES + _BYTES_A_PIXEL * settings.max_pixels + 2 * settings.max_body_bytes
    waiting = _BYTES_A_FORMS_BYTE * settings.max_queue_bytes + settings.max_queue_images * _WAITING_PICTURE_BYTES
    worker = _WORKER_BYTES + waiting + settings.answer_cache_bytes + settings.decode_processes_per_worker * decoder
    return _BESIDE_BYTES + settings.workers * worker


def _shares() -> dict[str, str]:
    """What a worker, a decoding process of it and the rest take by the defaults, in GB, rounded up."""

    def most(workers: int, decoders: int) -> int:
        return most_bytes(Settings(workers=workers, decode_processes=decoders))

    decoder = most(1, 2) - most(1, 1)
    worker = most(2, 1) - most(1, 1) - decoder
    shares = {"each worker": worker, "each decoding process": decoder, "the rest": most(1, 1) - worker - decoder}
    return {who: f"{math.ceil(share / 1e7) / 100:.2f} GB" for who, share in shares.items()}


def _told_faults() -> list[str]:
    return [
        f"{file.relative_to(_ROOT)} does not say that {who} takes {share}"
        for file in _TOLD_IN
        for who, share in _shares().items()
        if share not in file.read_text()
    ]


def faults_of(variables: Mapping[str, str], limit: str) -> list[str]:
    """What is wrong with the gateway's environment under ``limit``, such as 4Gi or 4g; nothing if it fits."""
    names = {key.removeprefix(_PREFIX).lower(): value for key, value in variables.items() if key.startswith(_PREFIX)}
    settings = Settings(**names)  # type: ignore[arg-type]
    if settings.decode_processes is None:
        return ["TRESNET_DECODE_PROCESSES is not set: memory would grow with the node's cores"]
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", limit).groups()  # type: ignore[union-attr]
    most, allowed = most_bytes(settings), int(number) * _UNITS[unit]
    return [] if most < allowed else [f"the gateway may take {most / _GI:.1f} GiB and is killed beyond {limit}"]


def _compose_faults() -> list[str]:
    """By the defaults of its variables."""
    text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", _COMPOSE.read_text())
    gateway = yaml.safe_load(text)["services"]["gateway"]
    environment = {name: str(value) for name, value in gateway["environment"].items()}
    return faults_of(environment, gateway["deploy"]["resources"]["limits"]["memory"])


if __name__ == "__main__":
    faults = _compose_faults() + _told_faults()
    print("\n".join(faults) or "the gateway's memory holds what it lets in", file=sys.stderr if faults else None)
    sys.exit(bool(faults))
