"""Versions and models come, fail and go in the repository while requests are answered without a break."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import Server, run_tresnet, start_server, until
from google.protobuf import text_format
from page_visitor import gateway
from tritonclient import grpc as triton
from tritonclient.grpc import model_config_pb2 as pb

from tresnet.contract import VersionFacts

_STUMBLE = """
import os
mark = Path(f"{}-{{os.getppid()}}")
if not mark.exists():
    mark.touch()
    raise RuntimeError("no memory, this once")
"""

_STOP = """
import os, signal
initialize = TritonPythonModel.initialize
def stopped_once(self, args):
    mark = Path("{}")
    if not mark.exists():
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    initialize(self, args)
TritonPythonModel.initialize = stopped_once
"""


class Traffic:
    """Clients that ask without a pause; which version answered, and everything that was not right."""

    def __init__(self, server: Server, picture: bytes) -> None:
        self.url = f"{server.url}/classify"
        self.picture = picture
        self.right = self.ask()[1]
        self.versions: Counter[str] = Counter()
        self.wrong: list[object] = []
        self.allowed_codes: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def ask(self) -> tuple[str, dict[int, float]]:
        answer = httpx.post(f"{self.url}?top_k=10", content=self.picture, timeout=60).raise_for_status().json()
        [result] = answer["results"]
        return answer["model"]["version"], {entry["label"]: entry["score"] for entry in result["predictions"]}

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            try:
                version, scores = self.ask()
            except httpx.HTTPStatusError as error:
                if error.response.json()["code"] not in self.allowed_codes:
                    self.wrong.append(error.response.text)
            except httpx.HTTPError as error:
                self.wrong.append(repr(error))
            else:
                self.versions[version] += 1
                if max(abs(scores[label] - score) for label, score in self.right.items()) > 1e-3:
                    self.wrong.append((version, scores))

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def copy_version(model: Path, source: str, target: str, program: bytes | None = None) -> None:
    """As export does: written aside, then renamed in."""
    shutil.copytree(model / source, model / ".aside")
    if program is not None:
        (model / ".aside" / "model.pt").write_bytes(program)
    (model / ".aside").rename(model / target)


def add_facts(model: Path, version: str, change: Callable[[VersionFacts], VersionFacts]) -> None:
    for path in (model / "config.pbtxt", model / "configs" / "embedded.pbtxt"):
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
        facts = VersionFacts.model_validate_json(config.parameters["version.1"].string_value)
        config.parameters[f"version.{version}"].string_value = change(facts).model_dump_json()
        path.with_suffix(".new").write_text(text_format.MessageToString(config))
        path.with_suffix(".new").rename(path)


def other_golden_scores(facts: VersionFacts) -> VersionFacts:
    scores = {label: abs(score - 0.5) for label, score in facts.golden.scores.items()}
    return facts.model_copy(update={"golden": facts.golden.model_copy(update={"scores": scores})})


@pytest.fixture
def own(models: Path, tmp_path: Path) -> Iterator[Server]:
    """A server over a repository of its own, empty when it starts."""
    (tmp_path / "model_repository").mkdir()
    server = start_server(tmp_path)
    try:
        until(lambda: not_ready(server) == "the model repository is empty", "an empty repository is told as such")
        assert "model_repository holds no model; `tresnet export` puts one there" in server.log()
        shutil.copytree(models / "model_repository" / "digits", tmp_path / "model_repository" / ".aside")
        (tmp_path / "model_repository" / ".aside").rename(tmp_path / "model_repository" / "digits")
        server.wait_ready(100)
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def not_ready(server: Server) -> str | None:
    try:
        answer = httpx.get(f"{server.url}/readyz", timeout=30)
    except httpx.ConnectError:
        return "no connection"
    return None if answer.status_code == 200 else str(answer.json()["detail"])


def failed(server: Server) -> dict[str, str]:
    """The versions that /readyz, which says 200 all the same, names as failed."""
    answer = httpx.get(f"{server.url}/readyz", timeout=30)
    assert answer.status_code == 200, answer.text
    return {entry["version"]: entry["reason"] for entry in answer.json()["failed"]}


def metric(server: Server, line: str) -> float | None:
    lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
    return next((float(found.rpartition(" ")[2]) for found in lines if found.startswith(line)), None)


@pytest.mark.timeout(900)
def test_versions_come_fail_and_go_under_traffic(own: Server, models: Path, digit_files: list[bytes]) -> None:
    model = own.folder / "model_repository" / "digits"
    count = 'tresnet_model_versions_failed{model="digits"}'
    traffic = Traffic(own, digit_files[0])
    with traffic.running():
        exported = run_tresnet(
            "export", models / "runs/digits/best.pt", "--task", "classify", "--name", "digits", cwd=own.folder
        )
        assert exported.returncode == 0, exported.stderr
        until(lambda: traffic.ask()[0] == "2", "the exported version serves")

        copy_version(model, "2", "3", program=b"no program")
        until(lambda: "3" in failed(own), "a broken program is told")
        assert metric(own, count) == 1

        # A Triton that starts with a broken version in its repository serves the others.
        traffic.allowed_codes = {"triton_unavailable", "model_not_ready"}
        [old] = own.tritons()
        os.kill(old, signal.SIGKILL)
        until(lambda: not_ready(own), "the loss is noticed")
        until(lambda: not not_ready(own) and "3" in failed(own), "the good versions serve again")
        until(lambda: traffic.ask()[0] == "2", "the newest good version serves again")
        traffic.allowed_codes = set()

        shutil.rmtree(model / "3")
        add_facts(model, "4", other_golden_scores)
        copy_version(model, "2", "4")
        until(lambda: "golden" in failed(own).get("4", ""), "wrong scores are told")
        assert "3" not in failed(own)
        shutil.rmtree(model / "4")
        until(lambda: not failed(own), "the failed version is forgotten")
        assert metric(own, count) == 0

        labels = (model / "labels.txt").read_text()
        in_another_order = "\n".join(reversed(labels.split())) + "\n"
        in_another_code = "\n".join(["\xe9", *labels.split()[1:]]) + "\n"
        for other in (in_another_order, in_another_code):
            (model / "labels.txt").write_text(other, encoding="latin-1")
            add_facts(model, "5", lambda facts: facts)
            copy_version(model, "2", "5")
            until(lambda: "labels" in failed(own).get("5", ""), "other labels are told")
            shutil.rmtree(model / "5")
            until(lambda: not failed(own), "the failed version is forgotten")
        (model / "labels.txt").write_text(labels)
        assert traffic.versions.keys() == {"1", "2"}

        shutil.rmtree(model / "2")
        until(lambda: traffic.ask()[0] == "1", "removing the version's folder rolls back")

        def logged(what: str) -> int:
            return own.log().count(what)

        loads = logged("model 'digits': loaded [1]")
        (model / str(2**63)).mkdir()  # a number that Triton dies of
        until(lambda: logged("cannot be loaded: Value out of range"), "a folder that is no version is told")
        assert traffic.ask()[0] == "1"
        (model / str(2**63)).rmdir()
        until(lambda: logged("model 'digits': loaded [1]") > loads, "its removal is noticed", 20)
    assert not traffic.wrong, traffic.wrong[:3]
    assert metric(own, 'tresnet_model_info{arch="tresnet_m",model="digits"') == 1

    answer = httpx.post(f"{own.url}/classify?version=2", content=digit_files[0])
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_version")
    unloaded_and_loaded(own, traffic)


def unloaded_and_loaded(own: Server, traffic: Traffic) -> None:
    """By a hand at Triton's controls, as an operator of a Triton of their own may do."""
    with triton.InferenceServerClient(own.triton_address()) as client:
        client.unload_model("digits")
        until(lambda: not_ready(own), "the unloading is noticed")
        answer = httpx.post(traffic.url, content=traffic.picture)
        assert (answer.status_code, answer.json()["code"]) == (503, "model_not_ready")
        assert int(answer.headers["retry-after"]) >= 1
        client.load_model("digits")
        until(lambda: not not_ready(own), "the loading is noticed")
    assert traffic.ask()[1] == pytest.approx(traffic.right, abs=1e-3)


def publish(repository: Path, name: str, *, program: bytes | None = None, code: str = "") -> None:
    """The tagger under another name, and perhaps with another program, or with more code in its model.py."""
    shutil.copytree(repository / "tagger", repository / ".aside")
    for path in (repository / ".aside").rglob("*.pbtxt"):
        path.write_text(path.read_text().replace('name: "tagger"', f'name: "{name}"'))
    if program is not None:
        (repository / ".aside" / "1" / "model.pt").write_bytes(program)
    with (repository / ".aside" / "1" / "model.py").open("a") as file:
        file.write(code)
    (repository / ".aside").rename(repository / name)


@pytest.mark.timeout(600)
def test_models_come_and_go(server: Server, models: Path, digit_files: list[bytes], tmp_path: Path) -> None:
    repository = models / "model_repository"

    def asked(url: str, **query: str) -> tuple[int, str]:
        answer = httpx.post(f"{url}/tag", params={"threshold": "0", **query}, content=digit_files[0], timeout=60).json()
        return answer.get("status", 200), answer["model"]["name"] if "model" in answer else answer["code"]

    def defaults(of: Server) -> list[str]:
        models = httpx.get(f"{of.url}/models", timeout=60).json()["models"]
        return [model["name"] for model in models if model["is_default"]]

    with gateway(server, tmp_path, default_models="digits, elsewhere, bad, late") as preferring:
        try:
            publish(repository, "bad", program=b"no program")
            until(lambda: failed(server) and failed(preferring), "a new model that fails is told")
            assert asked(server.url, model="bad") == (503, "model_not_ready")
            for each in (server, preferring):
                assert asked(each.url) == (200, "tagger"), "it takes nothing out of service"
            publish(repository, "late", code=_STUMBLE.format(tmp_path / "stumbled"))
            until(lambda: asked(server.url, model="late") == (200, "late"), "a new model is served")
            [of_server] = server.tritons()
            assert (tmp_path / f"stumbled-{of_server}").exists()
            log = server.log()
            assert "model 'bad' version [1] cannot be loaded" in log
            assert "model 'late' version [1] cannot be loaded" not in log, "it is tried a second time at once"
            assert asked(server.url) == (422, "model_required")
            until(lambda: asked(preferring.url) == (200, "late"), "a default is asked by those who name none")
            assert (defaults(server), defaults(preferring)) == (["digits"], ["digits", "late"])
            assert asked(preferring.url, model="tagger") == (200, "tagger")
            with triton.InferenceServerClient(server.triton_address()) as client:
                client.unload_model("late")
                until(lambda: asked(preferring.url) != (200, "late"), "the unloading is noticed")
                assert asked(preferring.url) == (503, "model_not_ready"), "a model that nobody chose steps in"
                client.load_model("late")
            until(lambda: asked(preferring.url) == (200, "late"), "the default is back")
            shutil.rmtree(repository / "late")
            until(lambda: asked(server.url, model="late") == (404, "unknown_model"), "it is removed")
            until(lambda: asked(preferring.url) != (200, "late"), "the removal is noticed")
            assert asked(preferring.url) == (503, "model_not_ready"), "a model that nobody chose steps in"
            assert 'does not hold: elsewhere"' in preferring.log()
        finally:
            for name in ("late", "bad"):
                shutil.rmtree(repository / name, ignore_errors=True)
    until(lambda: asked(server.url, model="late") == (404, "unknown_model"), "a removed model is unknown")
    until(lambda: not failed(server), "a removed model is forgotten")


def test_a_model_that_comes_again_takes_nothing_out_of_service(server: Server, models: Path) -> None:
    repository = models / "model_repository"

    def is_served() -> bool:
        served = httpx.get(f"{server.url}/models", timeout=60).json()["models"]
        return any(model["name"] == "again" for model in served)

    for _ in range(2):
        publish(repository, "again")
        try:
            until(lambda: not_ready(server) or is_served(), "it comes")
            assert not not_ready(server)
        finally:
            shutil.rmtree(repository / "again")
        until(lambda: not is_served(), "it goes")


def test_a_model_whose_process_is_stopped_as_it_starts_is_served(
    server: Server, models: Path, tmp_path: Path, digit_files: list[bytes]
) -> None:
    """Triton gives such a process up, and waits for its end, for good."""
    mark = tmp_path / "stopped"

    def asked(name: str) -> int:
        return httpx.post(f"{server.url}/tag?model={name}", content=digit_files[0], timeout=60).status_code

    publish(models / "model_repository", "held", code=_STOP.format(mark))
    try:
        until(mark.exists, "its process is stopped")
        time.sleep(3)
        os.kill(int(mark.read_text()), signal.SIGCONT)
        until(lambda: asked("held") == 200, "it is served", 60)
        assert server.log().count("its start hangs") == 1
        assert asked("tagger") == 200
    finally:
        shutil.rmtree(models / "model_repository" / "held")
    until(lambda: asked("held") == 404, "it goes")
