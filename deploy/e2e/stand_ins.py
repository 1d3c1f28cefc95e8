"""Stand-ins for the images that come from registries, so that the deployment runs where none can be reached.

``python:3.11-slim-bookworm``             Debian bookworm with its own Python 3.11, made by mmdebstrap
``nvcr.io/nvidia/tritonserver:…``         the toolbox with the bundled Triton in it (the Python backend reads the model)
``prom/prometheus``, ``prom/alertmanager``  Debian's packages of both

The Dockerfile and docker-compose.yml are used as they are: the stand-ins carry the names that those ask for. Grafana
has none; its provisioning is checked by `make check-deploy`, and its expressions against the Prometheus here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml
from engine import Engine

PYTHON_IMAGE = "python:3.11-slim-bookworm"
_ROOT = Path(__file__).resolve().parents[2]
_FIRST_PORT = 18765
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def python_base(engine: Engine, folder: Path) -> None:
    """Debian with Python, pip's configuration of this machine and its certificates, under the official image's name."""
    if engine.has_image(PYTHON_IMAGE):
        return
    archive = folder / "debian.tar"
    if not archive.exists():
        subprocess.run(
            [
                "mmdebstrap", "--quiet", "--variant=minbase",
                "--include=ca-certificates,python3,python3-venv,python3-pip",
                *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "info", "locale", "man")),
                f"--customize-hook=copy-in {_CERTIFICATES} /etc/ssl/certs",
                "bookworm", str(archive.with_suffix(".part.tar")),
            ],
            check=True,
            timeout=600,
        )  # fmt: skip
        archive.with_suffix(".part.tar").rename(archive)
    settings = (f"--change=ENV {name}={value!r}" for name, value in _pip_variables().items())
    engine.docker("import", *settings, archive, PYTHON_IMAGE)


def monitoring_and_balancer(engine: Engine) -> None:
    """Debian's Prometheus and Alertmanager under the names of their makers' images, and an nginx."""
    for name, package, command in (
        (image_of("prometheus"), "prometheus wget", "prometheus"),
        (image_of("alertmanager"), "prometheus-alertmanager wget", "prometheus-alertmanager"),
        ("balancer-stand-in", "nginx-light", "nginx"),
    ):
        _build(engine, name, f"""
            FROM {PYTHON_IMAGE}
            RUN apt-get update && apt-get install --yes --no-install-recommends {package} \\
                && install -d -o 65534 -g 65534 /prometheus /alertmanager
            COPY nginx.conf /etc/nginx/nginx.conf
            ENTRYPOINT ["{command}"]
            """)  # fmt: skip


def triton(engine: Engine, toolbox: str) -> None:
    """The bundled Triton on top of the toolbox, whose torch its Python backend uses; started like NVIDIA's."""
    _build(engine, image_of("triton-cpu"), f"""
        FROM {toolbox}
        USER root
        RUN apt-get update && apt-get install --yes --no-install-recommends curl libpython3.11 \\
            && pip install --no-deps --target /opt/triton nvidia-pytriton==0.7.0
        COPY tritonserver /opt/venv/bin/tritonserver
        RUN python3 /opt/venv/bin/tritonserver --link-backend
        ENTRYPOINT []
        """)  # fmt: skip


def image_of(service: str) -> str:
    """The image that docker-compose.yml names for a service."""
    compose = yaml.safe_load((_ROOT / "docker-compose.yml").read_text())
    return str(compose["services"][service]["image"])


def _build(engine: Engine, name: str, dockerfile: str) -> None:
    context = Path(__file__).parent / "images"
    with tempfile.NamedTemporaryFile("w", suffix=".Dockerfile") as file:
        file.write(textwrap.dedent(dockerfile))
        file.flush()
        engine.docker("build", "--network=host", f"--file={file.name}", f"--tag={name}", context)


@contextmanager
def package_folders() -> Iterator[None]:
    """Offer this machine's own folders of packages over loopback, at ports that do not change, while images are built.

    A build on the host's network sees the same indexes as this machine, but not its folders.
    """
    servers = [
        ThreadingHTTPServer(("127.0.0.1", port), partial(_QuietHandler, directory=str(Path(folder).parent)))
        for folder, port in _local_folders().items()
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _pip_variables() -> dict[str, str]:
    """Pip's settings on this machine as an image's environment."""
    folders = _local_folders()
    variables = {"PIP_CERT": _CERTIFICATES, "PIP_TIMEOUT": "180"}

    def as_seen_in_a_build(place: str) -> str:
        port = folders.get(_folder(place))
        return place if port is None else f"http://127.0.0.1:{port}/{Path(_folder(place)).name}/"

    for name, places in _pip_places().items():
        if places:
            variables[f"PIP_{name.upper().replace('-', '_')}"] = " ".join(map(as_seen_in_a_build, places))
    return variables


def _local_folders() -> dict[str, int]:
    """Folders that pip takes packages from, each with a port, at which the folder above it is offered.

    Indexes link to their neighbours.
    """
    places = [_folder(place) for places in _pip_places().values() for place in places]
    return {
        folder: _FIRST_PORT + number for number, folder in enumerate(dict.fromkeys(places)) if Path(folder).is_dir()
    }


def _folder(place: str) -> str:
    return place.removeprefix("file://").rstrip("/")


def _pip_places() -> dict[str, list[str]]:
    names = ("index-url", "extra-index-url", "find-links")
    return {name: _pip_setting(name) for name in names}


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


def _pip_setting(name: str) -> list[str]:
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True, check=False
    )
    return (os.environ.get(f"PIP_{name.upper().replace('-', '_')}") or asked.stdout).split()
