"""The deployment as an operator meets it: built, started, asked, broken, repaired, restarted."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
from conftest import Stack, wait_until
from engine import Engine

from deploy.grafana.dashboard import expressions

pytestmark = pytest.mark.timeout(900)


def test_the_gateways_image_is_small_and_holds_no_torch(engine: Engine, images: None) -> None:
    [image] = json.loads(engine.docker("image", "inspect", "tresnet-gateway").stdout)
    assert image["Size"] < 350e6
    look = "import importlib.util, sys; sys.exit(any(map(importlib.util.find_spec, ('torch', 'pip'))))"
    engine.docker("run", "--rm", "--network=none", "--entrypoint=python3", "tresnet-gateway", "-c", look)


@pytest.mark.parametrize("target", ["gateway", "toolbox"])
def test_images_run_as_a_numbered_user(engine: Engine, images: None, target: str) -> None:
    [image] = json.loads(engine.docker("image", "inspect", f"tresnet-{target}").stdout)
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Entrypoint"][0] == "tini"


def test_a_picture_is_classified(stack: Stack, digit: bytes) -> None:
    answer = stack.classify(digit)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == {"name": "digits", "version": "1", "task": "classify"}
    assert len(answer.json()["results"][0]["predictions"]) == 5


def test_keys_are_asked_for_and_rotated_without_a_restart(stack: Stack, digit: bytes) -> None:
    refused = httpx.post(f"{stack.gateway}/classify", content=digit, timeout=60)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert stack.classify(digit, key="tresnet_wrong").status_code == 401

    def all_answer(key: str, status: int) -> bool:  # the balancer sends them to both gateways in turn
        return all(stack.classify(digit, key=key).status_code == status for _ in range(6))

    before = stack.key
    stack.key, line = stack.new_key()
    stack.write_keys(line)
    wait_until(lambda: all_answer(stack.key, 200), 30)
    wait_until(lambda: all_answer(before, 401), 30)


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_the_pages_bring_all_that_they_need(stack: Stack, page: str) -> None:
    answer = httpx.get(stack.gateway + page, timeout=60)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    files = re.findall(r'<(?:script|link)[^>]+(?:src|href)="([^"]+)"', answer.text)
    assert len(files) >= 3
    for file in files:
        assert file.startswith("page/")
        assert httpx.get(f"{stack.gateway}/{file}", timeout=60).status_code == 200, file


@pytest.mark.parametrize("service", ["gateway", "triton-cpu", "prometheus", "alertmanager"])
def test_no_container_is_root_or_writes_to_its_image(stack: Stack, service: str) -> None:
    for container in stack.containers(service):
        asked = stack.engine.docker("exec", container, "sh", "-c", "id -u; touch /usr/x", check=False)
        assert asked.stdout.strip() not in ("", "0")
        assert asked.returncode
        assert "Read-only file system" in asked.stderr
        host = stack.inspect(container)["HostConfig"]
        assert host["CapDrop"] == ["ALL"]
        assert host["Memory"] > 0
        assert host["RestartPolicy"]["Name"] == "unless-stopped"


def test_triton_is_published_nowhere(stack: Stack) -> None:
    for container in stack.containers("triton-cpu"):
        assert not any((stack.inspect(container)["NetworkSettings"]["Ports"] or {}).values())


def test_prometheus_scrapes_all_and_answers_every_panel(stack: Stack, digit: bytes) -> None:
    for _ in range(40):  # several seconds of traffic, so that rates have something to show
        stack.classify(digit).raise_for_status()
        time.sleep(0.1)
    wait_until(lambda: len(stack.query('up{job=~"tresnet-(gateway|triton)"} == 1')) == 4, 60)
    wait_until(lambda: stack.query("sum(tresnet_http_requests_total{code='200',route='/classify'}) >= 40"), 60)
    wait_until(lambda: stack.query("sum(nv_inference_request_success{model='digits'}) > 0"), 60)
    # Nothing was refused, there is no GPU, and there was no day before.
    may_be_empty = ("tresnet_rejected_total", "nv_gpu", "label_shift")
    for expression in expressions():
        if any(name in expression for name in may_be_empty):
            stack.query(expression)
        else:
            wait_until(partial(stack.query, expression), 60)


def test_killing_triton_fires_an_alert_and_its_return_resolves_it(stack: Stack, digit: bytes) -> None:
    tritons = stack.containers("triton-cpu")
    stack.engine.docker("kill", *tritons)
    refused = stack.classify(digit)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    wait_until(lambda: stack.firing("TresnetTritonDown"), 120)
    stack.engine.docker("start", *tritons)
    for container in tritons:
        stack.wait_healthy(container)
    wait_until(lambda: not stack.firing("TresnetTritonDown"), 120)
    wait_until(lambda: stack.classify(digit).status_code == 200, 60)


def test_a_paused_triton_costs_no_more_than_the_deadline(stack: Stack, digit: bytes) -> None:
    tritons = stack.containers("triton-cpu")
    stack.engine.docker("pause", *tritons)
    try:
        asked = time.monotonic()
        answer = stack.classify(digit, **{"X-Request-Timeout-Ms": "3000"})
        assert answer.status_code in (503, 504)
        assert time.monotonic() - asked < 10
    finally:
        stack.engine.docker("unpause", *tritons)
    wait_until(lambda: stack.classify(digit).status_code == 200, 60)


@pytest.mark.parametrize("service", ["gateway", "triton-cpu"])
def test_a_rolling_restart_fails_no_request(stack: Stack, digit: bytes, service: str) -> None:
    answers: Counter[str] = Counter()
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                answer = stack.classify(digit)
                answers["ok" if answer.status_code == 200 else answer.text] += 1
            except httpx.HTTPError as error:
                answers[repr(error)] += 1
            time.sleep(0.2)

    with ThreadPoolExecutor(4) as clients:
        for _ in range(4):
            clients.submit(client)
        try:
            for container in stack.containers(service):
                stack.engine.docker("restart", "--time=45", container)
                stack.wait_healthy(container)
                if service == "triton-cpu":
                    time.sleep(15)  # gateways look for it every ten, and say nowhere that they know it
                before = answers["ok"]
                wait_until(lambda before=before: answers["ok"] > before + 5, 60)
        finally:
            over.set()
    assert set(answers) == {"ok"}, (answers, stack.compose("logs", "--tail", 400, "gateway", service))
    print(f"{service}: {answers['ok']} requests, none failed")
