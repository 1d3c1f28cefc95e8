"""Keys, rates, CORS and TLS: who may ask."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import Guarded, Server, run_tresnet, start_server, until

COMPOSE = Path(__file__).parents[1] / "docker-compose.yml"


def status(guarded: Guarded, key: str) -> int:
    return httpx.get(f"{guarded.url}/models", headers={"X-API-Key": key}).status_code


def test_no_key_and_wrong_keys_are_refused(guarded: Guarded, digit_files: list[bytes]) -> None:
    for headers, challenge in (
        ({}, 'Bearer realm="tresnet"'),
        ({"Authorization": "Basic YTpi"}, 'Bearer realm="tresnet"'),
        ({"Authorization": f"Bearer {guarded.key[:-1]}"}, 'Bearer realm="tresnet", error="invalid_token"'),
        ({"X-API-Key": "tresnet_"}, 'Bearer realm="tresnet", error="invalid_token"'),
        ({"X-API-Key": guarded.key, "Authorization": "Bearer x"}, 'Bearer realm="tresnet", error="invalid_token"'),
    ):
        answer = httpx.post(f"{guarded.url}/classify", content=digit_files[0], headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == challenge
        assert answer.headers["content-type"] == "application/problem+json"
    for path in ("/models", "/tag", "/nowhere"):  # closed by default
        assert httpx.get(guarded.url + path).status_code == 401
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics", "/docs", "/openapi.json", "/"):
        assert httpx.get(guarded.url + path).status_code == 200


def test_a_key_lets_in_and_its_name_is_counted(guarded: Guarded, digit_files: list[bytes]) -> None:
    before = guarded.metric("tresnet_key_images_total", key="alice")
    for headers in ({"Authorization": f"Bearer {guarded.key}"}, {"X-API-Key": guarded.key}):
        answer = httpx.post(f"{guarded.url}/classify", content=digit_files[0], headers=headers)
        assert answer.status_code == 200
    assert guarded.metric("tresnet_key_images_total", key="alice") == before + 2
    assert guarded.metric("tresnet_key_requests_total", key="alice", code="200") >= 2


def test_the_client_brings_its_key(guarded: Guarded, digit_files: list[bytes]) -> None:
    picture = guarded.folder / "digit.png"
    picture.write_bytes(digit_files[0])
    ask = ("classify", picture, "--url", guarded.url)
    assert run_tresnet(*ask, cwd=guarded.folder).returncode == 2
    assert run_tresnet(*ask, "--api-key", guarded.key, cwd=guarded.folder).returncode == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRESNET_API_KEY", guarded.key)
        assert run_tresnet(*ask, cwd=guarded.folder).returncode == 0


def test_keys_are_rotated_without_a_restart(guarded: Guarded) -> None:
    before = guarded.keys_file.read_text()
    made = run_tresnet("key", "alice", "--add-to", guarded.keys_file, cwd=guarded.folder)
    successor = made.stdout.strip()
    assert successor not in guarded.keys_file.read_text()
    until(lambda: status(guarded, successor) == 200)
    assert status(guarded, guarded.key) == 200  # the old one goes on until its line is gone
    guarded.keys_file.write_text(guarded.keys_file.read_text().splitlines()[-1] + "\n")
    until(lambda: status(guarded, guarded.key) == 401)
    assert status(guarded, successor) == 200
    guarded.keys_file.write_text(before)
    until(lambda: (status(guarded, guarded.key), status(guarded, successor)) == (200, 401))


def test_a_key_that_would_break_the_file_is_not_added(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert run_tresnet("key", "alice", "--images-per-second", "20", "--add-to", keys, cwd=tmp_path).returncode == 0
    before = keys.read_text()
    refused = run_tresnet("key", "alice", "--add-to", keys, cwd=tmp_path)
    assert refused.returncode == 2
    assert "have different rates: give all of them the same one" in refused.stderr
    assert not refused.stdout
    assert keys.read_text() == before


@pytest.mark.parametrize("broken", ["alice:0123", "", None])
def test_a_broken_file_keeps_the_keys(guarded: Guarded, broken: str | None) -> None:
    before = guarded.keys_file.read_text()
    if broken is None:
        guarded.keys_file.unlink()
    else:
        guarded.keys_file.write_text(broken)
    until(lambda: guarded.metric("tresnet_api_keys_last_reload_successful") == 0)
    assert status(guarded, guarded.key) == 200
    assert status(guarded, "another") == 401
    guarded.keys_file.write_text(before)
    until(lambda: guarded.metric("tresnet_api_keys_last_reload_successful") == 1)
    assert status(guarded, guarded.key) == 200


def test_a_rate_holds_for_its_key_alone(guarded: Guarded, digit_files: list[bytes]) -> None:
    def ask(key: str, images: int = 1) -> httpx.Response:
        files = [("image", (str(i), digit_files[i])) for i in range(images)]
        return httpx.post(f"{guarded.url}/classify", files=files, headers={"X-API-Key": key}, timeout=30)

    assert ask(guarded.slow_key).status_code == 200
    refused = ask(guarded.slow_key)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 4
    assert ask(guarded.key).status_code == 200
    assert guarded.metric("tresnet_rejected_total", reason="rate_limited") >= 1
    until(lambda: ask(guarded.slow_key, 3).status_code == 200)  # more than the bucket holds, paid off afterwards
    assert int(ask(guarded.slow_key).headers["retry-after"]) > 4


def test_keys_and_pictures_stay_out_of_the_log(guarded: Guarded, digit_files: list[bytes]) -> None:
    own, picture = {"X-API-Key": guarded.key}, b"the bytes of one picture"
    asked = {
        "secret-1": ("POST", f"/classify?key={guarded.key}", digit_files[0], {"X-API-Key": "wrong-one"}),
        "secret-2": ("GET", f"/{guarded.key}", b"", own),
        "secret-3": ("POST", "/classify", picture, own),
        "secret-4": ("POST", "/classify", digit_files[0], own),
    }
    for number, (method, path, body, headers) in asked.items():
        httpx.request(method, guarded.url + path, content=body, headers={**headers, "X-Request-ID": number}, timeout=30)
    until(lambda: all(f'"{number}"' in guarded.log() for number in asked))
    log = guarded.log()
    told = {line.get("request_id"): line for line in map(json.loads, log.splitlines())}
    assert [told[number].get("key") for number in asked] == [None, "alice", "alice", "alice"]
    begins = [base64.b64encode(body[:24]).decode() for body in (picture, digit_files[0])]
    for secret in (guarded.key, guarded.slow_key, "wrong-one", picture.decode(), *begins):
        assert secret not in log
        assert secret not in httpx.get(f"{guarded.url}/metrics").text


def test_other_origins_are_let_in_only_where_set(guarded: Guarded, server: Server) -> None:
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "x-api-key"
    preflight = httpx.options(f"{guarded.url}/classify", headers=asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "https://app.example")
    refused = httpx.get(f"{guarded.url}/models", headers={"Origin": "https://app.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")
    for url, origin in ((guarded.url, "https://evil.example"), (server.url, "https://app.example")):
        answer = httpx.get(f"{url}/livez", headers={"Origin": origin})
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_tls_by_flags(tmp_path: Path) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        "tls.key",
        "-out",
        "tls.pem",
    ]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    options = ("--tls-certificate", "tls.pem", "--tls-key", "tls.key", "--triton-url", "grpc://127.0.0.1:1")
    gateway = start_server(tmp_path, *options)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "tls.pem"))
    url = gateway.url.replace("http://", "https://")

    def is_up() -> bool:
        try:
            return httpx.get(f"{url}/livez", verify=trusted).json() == {"status": "live"}
        except httpx.ConnectError:
            return False

    try:
        until(is_up)
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{url}/livez")
        _, _, *health = yaml.safe_load(COMPOSE.read_text())["services"]["gateway"]["healthcheck"]["test"]
        health = [part.replace(":8080", url.removeprefix("https://127.0.0.1")) for part in health]
        environment = {**os.environ, "TRESNET_TLS_CERTIFICATE": "tls.pem"}
        asked = subprocess.run([sys.executable, *health], env=environment, capture_output=True, text=True, check=False)
        assert "HTTP Error 503" in asked.stderr, "it has no Triton, and says so"
        with httpx.Client(verify=trusted) as idle:  # does not hold up a stop
            assert idle.get(f"{url}/livez").status_code == 200
            gateway.process.send_signal(signal.SIGINT)
            assert gateway.process.wait(20) == 0
    finally:
        gateway.process.kill()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"API_KEYS_FILE": "missing"}, "missing"),
        ({"API_KEYS_FILE": "broken"}, "line 2"),
        ({"API_KEY": "tresnet_x"}, "TRESNET_API_KEYS_FILE"),
        ({"TLS_CERTIFICATE": "broken", "TLS_KEY": "broken"}, "TLS"),
        ({"URL_HOSTS": "*"}, "TRESNET_URL_HOSTS"),
        ({"URL_HOSTS": "https://pictures.example"}, "is no host: NAME, *.SUFFIX or [IPV6], perhaps with :PORT"),
    ],
)
def test_what_would_leave_it_open_or_broken_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    (tmp_path / "broken").write_text(f"alice:{64 * '0'}\nbob:{63 * '0'}\n")
    for name, value in variables.items():
        monkeypatch.setenv(f"TRESNET_{name}", value)
    stopped = run_tresnet("serve", "--triton-url", "grpc://127.0.0.1:1", cwd=tmp_path, timeout=60)
    assert stopped.returncode == 2
    assert message in stopped.stderr
    assert 63 * "0" not in stopped.stderr


NO_SDK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "opentelemetry.sdk":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def test_traces_without_their_packages_stop_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_SDK)  # an environment without the extra
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TRESNET_TRACING", "true")
    stopped = run_tresnet("serve", "--triton-url", "grpc://127.0.0.1:1", cwd=tmp_path, timeout=60)
    assert stopped.returncode == 2
    assert "'.[tracing]'" in stopped.stderr


def test_a_key_is_made_with_its_line(tmp_path: Path) -> None:
    made = run_tresnet("key", "bob", "--images-per-second", "2.5", cwd=tmp_path)
    key, line = made.stdout.split()
    assert key.startswith("tresnet_")
    assert line.startswith("bob:")
    assert line.endswith(":2.5")
    assert key not in line
    assert run_tresnet("key", "b o b", cwd=tmp_path).returncode == 2
