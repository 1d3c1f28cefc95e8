"""``tresnet doctor`` and ``tresnet models``: what is there, what is broken, and how to mend it."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import httpx
import pytest
from conftest import Server, call_tresnet, free_port, run_side_by_side, run_tresnet


def test_all_is_well(server: Server) -> None:
    own_port = server.url.rpartition(":")[2]
    done, beside = run_side_by_side(
        [("doctor", "--json", "--port", free_port(), "--url", server.url), ("doctor", "--port", own_port)],
        cwd=server.folder,
    )
    assert "taken by a gateway of this kind" in " ".join(beside.stdout.replace("│", " ").split())
    states = {finding["check"]: finding["state"] for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert set(states) == {
        "python", "make", "compiler", "settings", "triton", "gpu", "shared memory", "port", "repository", "gateway",
    }  # fmt: skip
    needed = ("settings", "triton", "port", "repository", "gateway")
    assert [states[check] for check in needed] == ["ok"] * len(needed)
    assert "digits 1, tagger 1" in done.stdout


def test_each_fault_has_its_remedy(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "model_repository"
    shutil.copytree(models / "model_repository", broken)
    (broken / "digits" / "1" / "model.pt").unlink()
    (broken / "tagger" / "labels.txt").write_text("tag 0\n")
    (tmp_path / "triton").mkdir()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TRESNET_PROT", "80")
    monkeypatch.setenv("TRESNET_TRITON_HOME", str(tmp_path / "triton"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = ("--port", taken.getsockname()[1], "--url", f"http://127.0.0.1:{free_port()}")
        as_json, shown = run_side_by_side(
            [("doctor", *options, "--json"), ("doctor", *options, "--repository", tmp_path / "none")], cwd=tmp_path
        )
    findings = {finding["check"]: finding for finding in json.loads(as_json.stdout)}
    assert (as_json.returncode, shown.returncode) == (1, 1)
    assert {check: finding["state"] for check, finding in findings.items() if finding["state"] != "ok"} == {
        "make": "warn", "compiler": "warn", "settings": "fail", "triton": "fail", "port": "warn",
        "repository": "fail", "gateway": "fail",
    }  # fmt: skip
    assert all(finding["remedy"] for finding in findings.values() if finding["state"] != "ok")
    assert "TRESNET_PROT" in findings["settings"]["found"]
    assert "model.pt is missing" in findings["repository"]["found"]
    assert "labels.txt is not the one" in findings["repository"]["found"]
    assert "tresnet export" in shown.stdout
    assert "make models" not in shown.stdout, "there is no Makefile"


def test_the_port_is_looked_at_where_the_gateway_would_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> tuple[str, str]:
        done = call_tresnet("doctor", "--json", cwd=tmp_path)
        finding = next(finding for finding in json.loads(done.stdout) if finding["check"] == "port")
        return finding["state"], finding["found"]

    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("TRESNET_PORT", str(port))
        monkeypatch.setenv("TRESNET_HOST", "127.0.0.2")
        assert said() == ("warn", f"{port} on 127.0.0.2: Address already in use")
        monkeypatch.setenv("TRESNET_HOST", "127.0.0.3")
        assert said() == ("ok", f"{port} is free on 127.0.0.3")
    monkeypatch.setenv("TRESNET_HOST", "nowhere.invalid")
    assert said()[1].startswith(f"{port} on nowhere.invalid: ")
    monkeypatch.setenv("TRESNET_WORKERS", "none")
    assert "on 127.0.0.1" in said()[1], "with a value that does not fit, the defaults are looked at"


def test_a_triton_elsewhere_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, state in ((server.triton_address(), "ok"), (f"127.0.0.1:{free_port()}", "fail")):
        monkeypatch.setenv("TRESNET_TRITON_URL", f"grpc://{address}")
        done = run_tresnet("doctor", "--json", "--repository", server.folder / "model_repository", cwd=tmp_path)
        assert {finding["check"]: finding["state"] for finding in json.loads(done.stdout)}["triton"] == state


def test_models_of_a_gateway_and_of_a_folder(server: Server, tmp_path: Path) -> None:
    folder = server.folder / "model_repository"
    (tmp_path / "empty").mkdir()
    served, stored, shown, away, nothing, empty = run_side_by_side(
        [
            ("models", "--json", "--url", server.url),
            ("models", "--json", "--repository", folder),
            ("models", "--repository", folder),
            ("models", "--url", f"http://127.0.0.1:{free_port()}"),
            ("models", "--repository", "nothing"),
            ("models", "--repository", "empty"),
        ],
        cwd=tmp_path,
    )
    documents = [json.loads(line) for line in served.stdout.splitlines()]
    assert documents == httpx.get(f"{server.url}/models").json()["models"]
    for document in documents:
        assert document.pop("is_default") is True  # the only one of its task; no folder can tell
    assert [json.loads(line) for line in stored.stdout.splitlines()] == documents
    assert [word in shown.stdout for word in ("digits", "tagger", "tresnet_m", "fp32")] == [True] * 4
    assert (away.returncode, nothing.returncode, empty.returncode) == (3, 2, 2)
    assert (empty.stdout, "empty holds no model" in empty.stderr) == ("", True)

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    long = "a-name-of-many-words-that-must-be-typed-to-be-asked"
    copied = shutil.copytree(folder / "digits", broken / long)
    for file in ("config.pbtxt", "configs/embedded.pbtxt"):
        (copied / file).write_text((copied / file).read_text().replace('name: "digits"', f'name: "{long}"'))
    assert long in run_tresnet("models", "--repository", broken, cwd=tmp_path).stdout
    shutil.rmtree(copied)
    (broken / "digits" / "config.pbtxt").write_text("name: {")
    done = run_tresnet("models", "--json", "--repository", broken, cwd=tmp_path)
    assert (done.returncode, [json.loads(line)["name"] for line in done.stdout.splitlines()]) == (1, ["tagger"])
    assert "digits" in done.stderr
