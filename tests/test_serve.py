"""``make serve`` after its models are made: what it says, and what it says in place of that on a port that is taken."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import TRESNET, Server, free_port, run_tresnet, until

from app.settings import Settings

ROOT = Path(__file__).parents[1]
_TRESNET = """#!/bin/sh
echo "$@" >> said
case "$1" in
    train) mkdir -p "runs/$2"; test "$2" = digits -o -e "runs/$2/last.pt" || { touch "runs/$2/last.pt"; exit 130; } ;;
    export) folder=model_repository/$(basename "$(dirname "$2")"); mkdir -p "$folder"; touch "$folder/config.pbtxt" ;;
esac
"""
"""Trains and exports in no time; its first training of `multidigits` is interrupted."""
_SERVE = [sys.executable, str(ROOT / "deploy/serve.py")]


def test_make_serve_says_how_to_ask_and_refuses_a_taken_port(models: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    repository = tmp_path / "model_repository"
    shutil.copytree(models / "model_repository" / "digits", repository / "digits")
    shutil.copytree(repository / "digits", repository / "mine")  # as a second export of the same would be
    for path in (repository / "mine").rglob("*.pbtxt"):
        path.write_text(path.read_text().replace('name: "digits"', 'name: "mine"'))
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRESNET_")}
    environment |= {"PORT": str(port), "PATH": f"{Path(TRESNET).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    said = tmp_path / "said"
    with said.open("w") as out, (tmp_path / "serve.log").open("w") as log:
        serving = subprocess.Popen(_SERVE, cwd=tmp_path, env=environment, stdout=out, stderr=log)
    try:
        until(lambda: "Ctrl-C" in said.read_text() or serving.poll() is not None, "it says nothing")
        message = said.read_text()
        assert f"http://127.0.0.1:{port} in a browser" in message
        assert "Other models: mine." in message
        assert "?model=mine" not in message  # its labels are not those of a picture that lies here
        assert "WARNING" not in (tmp_path / "serve.log").read_text()
        curl, tresnet = (line for line in message.splitlines() if line.startswith("  "))
        for line in (curl.replace("?model=digits", ""), curl, tresnet + " --json"):  # the demo is the default, too
            if "curl" in line and not shutil.which("curl"):
                continue
            done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, check=False)
            document = json.loads(done.stdout)
            assert "predictions" in (document["results"][0] if "results" in document else document), done

        again = subprocess.run(
            _SERVE, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert (again.returncode, again.stdout) == (2, "")
        assert again.stderr == f"error: port {port} is in use; PORT={port + 1} make serve\n"
        (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
        (tmp_path / "deploy").symlink_to(ROOT / "deploy")
        (tmp_path / ".venv").symlink_to(sys.prefix)
        ask_make = ["make", "-o", ".venv/.installed", f"MODELS={tmp_path / 'none'}", "serve"]
        again = subprocess.run(
            ask_make, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert again.returncode == 2
        assert f"port {port} is in use" in again.stderr
        assert "train" not in again.stdout + again.stderr, "it trains for minutes before it says so"
        command = run_tresnet("serve", "--port", port, cwd=tmp_path)
        assert (command.returncode, len(command.stderr.splitlines())) == (2, 1)
        assert f"port {port} is in use" in command.stderr
    finally:
        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 0


def test_it_shows_how_to_ask_a_model_of_ones_own() -> None:
    spec = importlib.util.spec_from_file_location("serve", ROOT / "deploy/serve.py")
    assert spec is not None
    assert spec.loader is not None
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    url = "http://127.0.0.1:8080"
    said = serve._message(Settings(), url, ["mine", "yours"], {"mine": "tag", "yours": "classify"})
    assert f"curl --data-binary @examples/digit-7.png '{url}/tag?model=mine'" in said
    assert "tag examples/digit-7.png --model mine\n" in said
    assert "Other models: yours." in said


def test_what_is_there_at_the_start_is_not_looked_through_for_cycles() -> None:
    code = (
        "import gc, os\n"
        "from app.server import build_app\n"
        "from app.settings import Settings\n"
        "app = build_app(Settings(triton_url='grpc://127.0.0.1:8001'), os.getpid())\n"
        "print(gc.get_freeze_count(), len(gc.get_objects()))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    frozen, looked_through = map(int, said.split())
    assert frozen > 10_000
    assert looked_through < 1000


def test_an_interrupted_first_make_serve_gets_both_models_from_the_next(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "model_repository").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/.installed").touch()
    (tmp_path / ".venv/bin/tresnet").write_text(_TRESNET)
    (tmp_path / ".venv/bin/tresnet").chmod(0o755)
    ends = [
        subprocess.run(["make", "models"], cwd=tmp_path, capture_output=True, check=False).returncode for _ in range(3)
    ]
    assert ends == [2, 0, 0]
    said = (tmp_path / "said").read_text().splitlines()
    assert [line for line in said if "train" in line] == [
        "train digits",
        "train multidigits",
        "train multidigits --resume",
    ]
    made = {path.parent.name for path in (tmp_path / "model_repository").glob("*/config.pbtxt")}
    assert made == {"digits", "multidigits"}
    assert len(said) == 5  # a third time it has nothing to do


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_make_serve_listens_where_the_settings_say(server: Server, tmp_path: Path, host: str) -> None:
    """Of a checkout whose models are made, before a Triton that runs already."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("Makefile", "pyproject.toml", "deploy"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "model_repository/digits").mkdir(parents=True)
    (tmp_path / "model_repository/digits/config.pbtxt").touch()
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TRESNET_", "MAKE"))}
    environment |= {"TRESNET_HOST": host, "TRESNET_PORT": str(port)}
    environment |= {"TRESNET_TRITON_URL": f"grpc://{server.triton_address()}"}
    environment.pop("PORT", None)
    said = tmp_path / "said"
    with said.open("w") as out, (tmp_path / "serve.log").open("w") as log:
        serving = subprocess.Popen(
            ["make", "-o", ".venv/.installed", "serve"],
            cwd=tmp_path, env=environment, stdout=out, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: "Ctrl-C" in said.read_text() or serving.poll() is not None, "it says nothing", 30)
        assert f"http://[::1]:{port} in a browser" in said.read_text()
        assert httpx.get(f"http://[::1]:{port}/readyz").status_code == 200
    finally:
        os.killpg(serving.pid, signal.SIGINT)
        serving.wait(60)
