"""One engine, one set of images, one trained model, and the stack of docker-compose.yml, for all the tests here."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import stand_ins
import yaml
from engine import Engine

ROOT = Path(__file__).resolve().parents[2]
_FOLDER = Path(os.environ.get("E2E_FOLDER", "/var/tmp/tresnet-e2e"))  # images stay here for the next run  # noqa: S108
_REUSES_IMAGES = bool(os.environ.get("E2E_REUSE_IMAGES"))
_GATEWAY, _PROMETHEUS, _ALERTMANAGER = 18080, 19090, 19093


class Stack:
    """docker-compose.yml with the test's own changes over it."""

    gateway = f"http://127.0.0.1:{_GATEWAY}"
    prometheus = f"http://127.0.0.1:{_PROMETHEUS}"
    alertmanager = f"http://127.0.0.1:{_ALERTMANAGER}"
    services = ("triton-cpu", "gateway", "balancer", "prometheus", "alertmanager")

    def __init__(self, engine: Engine, folder: Path, models: Path) -> None:
        self.engine = engine
        self._folder = folder
        self._keys = folder / "api-keys"
        self.key = ""
        engine.environment |= {
            "COMPOSE_PROFILES": "cpu",
            "MODEL_REPOSITORY": str(models),
            "API_KEYS": str(self._keys),
            "GATEWAY_PORT": str(_GATEWAY),
            "PROMETHEUS_PORT": str(_PROMETHEUS),
            "ALERTMANAGER_PORT": str(_ALERTMANAGER),
        }

    def compose(self, *arguments: object, timeout_s: float = 600) -> str:
        own = (ROOT / "docker-compose.yml", ROOT / "deploy/api-keys.yml")
        changes = (Path(__file__).with_name("compose.yml"), self._folder / "prometheus.yml")
        files = [option for file in (*own, *changes) for option in ("-f", file)]
        return self.engine.docker(
            "compose", "--project-directory", ROOT, *files, *arguments, timeout_s=timeout_s
        ).stdout

    def up(self) -> None:
        """Start, and wait until every health check is content. Prometheus looks every second, to save time."""
        self._keys.mkdir(parents=True, exist_ok=True)
        self.key, line = self.new_key()
        self.write_keys(line)
        settings = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        settings["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        for job in settings["scrape_configs"]:
            for names in job.get("dns_sd_configs", []):
                names["refresh_interval"] = "1s"
        (self._folder / "prometheus.yml.settings").write_text(yaml.safe_dump(settings))
        (self._folder / "prometheus.yml").write_text(
            yaml.safe_dump(
                {
                    "services": {
                        "prometheus": {
                            "volumes": [f"{self._folder}/prometheus.yml.settings:/etc/prometheus/prometheus.yml:ro"]
                        }
                    }
                }
            )
        )
        try:
            self.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", 400, *self.services)
        except RuntimeError as error:
            error.add_note(self.compose("logs", "--tail", 30))
            raise

    def new_key(self) -> tuple[str, str]:
        """A key and its line for the file of keys, from the gateway's image."""
        made = self.engine.docker("run", "--rm", "--network=none", "tresnet-gateway", "key", "operator").stdout
        return tuple(line for line in made.splitlines() if " " not in line)  # the rest is words

    def write_keys(self, *lines: str) -> None:
        (self._keys / "keys").write_text("\n".join(lines) + "\n")

    def classify(self, picture: bytes, *, key: str | None = None, **headers: str) -> httpx.Response:
        """Ask through the balancer, with the key that is in force unless another is given."""
        headers |= {"X-API-Key": self.key if key is None else key}
        return httpx.post(f"{self.gateway}/classify", content=picture, headers=headers, timeout=60)

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", 5)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--all", "--quiet", service).split()

    def inspect(self, container: str) -> Any:
        return json.loads(self.engine.docker("inspect", container).stdout)[0]

    def wait_healthy(self, container: str, seconds: float = 120) -> None:
        wait_until(lambda: self.inspect(container)["State"]["Health"]["Status"] == "healthy", seconds)

    def query(self, expression: str) -> list[Any]:
        """Prometheus's answer now: a list of series."""
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        return list(answer["data"]["result"])

    def firing(self, alert: str) -> bool:
        """Whether Alertmanager has been told of it and has not been told of its end."""
        alerts = httpx.get(f"{self.alertmanager}/api/v2/alerts", params={"filter": f'alertname="{alert}"'}).json()
        return any(found["status"]["state"] == "active" for found in alerts)


def wait_until(holds: Callable[[], object], seconds: float) -> float:
    """Seconds until ``holds``; a refused connection counts as not yet."""
    started = time.monotonic()
    while True:
        try:
            if holds():
                return time.monotonic() - started
        except httpx.HTTPError:
            pass
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.3)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    _FOLDER.mkdir(parents=True, exist_ok=True)
    running = Engine(_FOLDER / "engine", ROOT / ".venv/deploy/docker")
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def images(engine: Engine) -> None:
    """The Dockerfile's own two, and stand-ins for the rest; E2E_REUSE_IMAGES=1 takes those of the last run."""
    if _REUSES_IMAGES:
        return
    stand_ins.python_base(engine, _FOLDER)
    with stand_ins.package_folders():
        for target in ("gateway", "toolbox"):
            engine.docker("build", "--network=host", f"--target={target}", f"--tag=tresnet-{target}", ROOT)
        stand_ins.triton(engine, "tresnet-toolbox")
        stand_ins.monitoring_and_balancer(engine)


@pytest.fixture(scope="session")
def models(engine: Engine, images: None) -> Path:
    """A model repository, trained and exported by the toolbox's image in a folder of the host's."""
    work = _FOLDER / "work"
    repository = work / "model_repository"
    if not (_REUSES_IMAGES and (repository / "digits" / "config.pbtxt").exists()):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        os.chown(work, 10001, 10001)
        toolbox = ("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", f"--volume={work}:/work")
        engine.docker(*toolbox, "tresnet-toolbox", "train", "digits", "--epochs", 1, "--out", "runs/digits")
        export = ("export", "runs/digits/best.pt", "--task", "classify", "--name", "digits")
        engine.docker(*toolbox, "tresnet-toolbox", *export)
    return repository


@pytest.fixture(scope="session")
def stack(engine: Engine, models: Path) -> Iterator[Stack]:
    running = Stack(engine, _FOLDER / "compose", models)
    try:
        running.up()
        yield running
    finally:
        running.down()


@pytest.fixture(scope="session")
def digit() -> bytes:
    return (ROOT / "examples/digit-7.png").read_bytes()
