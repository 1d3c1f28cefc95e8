"""The Python client: typed answers, patience that honours Retry-After and the deadline, streams of pictures."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from threading import enumerate as threads

import orjson
import pytest
from conftest import Guarded, Server, free_port, until

from client import (
    AsyncClient,
    Client,
    ClientError,
    HeatMap,
    NotAGatewayError,
    Patience,
    RefusedError,
    Result,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from client.conversation import Pause, Reply, ask
from client.requests import one_batch, read_picture

ANSWER = {
    "request_id": "r1",
    "model": {"name": "digits", "version": "1", "task": "classify"},
    "results": [{"id": "0", "status": "ok", "width": 4, "height": 3,
                 "predictions": [{"label": "7", "label_id": 7, "score": 0.9}]}],
}  # fmt: skip
Script = list[tuple[int, dict[str, str], object]]


@contextmanager
def scripted(script: Script) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that gives these answers, one after the other, and notes the headers of what it was asked."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append({**{k.lower(): v for k, v in self.headers.items()}, "at": str(time.monotonic())})
            status, headers, document = script[min(len(asked), len(script)) - 1]
            if status == 0:
                self.close_connection = True
                return
            body = document if isinstance(document, bytes) else orjson.dumps(document)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=web.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}", asked
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def problem(status: int, code: str) -> dict[str, object]:
    return {"status": status, "code": code, "detail": f"it is {code}", "request_id": "r0"}


def test_typed_answers(server: Server, digit_files: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(digit_files[0])
    with Client(server.url) as gateway:
        path = tmp_path / "a.png"
        answer = gateway.classify(path, top_k=3, embedding=True)
        assert gateway.classify(str(path), top_k=3, embedding=True).results == answer.results
        assert (answer.model.name, answer.model.version, answer.model.task) == ("digits", "1", "classify")
        (result,) = answer.results
        assert (result.id, result.width, result.height, result.error) == ("0", 64, 64, None)
        assert result.source == str(path)
        assert [entry.label for entry in result.predictions] == [str(entry.label_id) for entry in result.predictions]
        assert result.predictions[0].score > result.predictions[2].score
        assert result.embedding is not None
        assert len(result.embedding) == 2048
        answer = gateway.tag([digit_files[1], b"text"], threshold=0, include_labels=["tag 1", "tag 3"])
        good, bad = answer.results
        assert {(tag.label, tag.threshold) for tag in good.tags} == {("tag 1", 0), ("tag 3", 0)}
        assert bad.error is not None
        assert (bad.error.status, bad.error.code, bad.source) == (422, "undecodable_image", None)
        (none,), (every,) = (gateway.tag(digit_files[1], threshold=0, **wanted).results for wanted in (
            {"include_labels": []}, {"exclude_labels": []}))  # fmt: skip
        assert (len(none.tags), len(every.tags)) == (0, 5)
        models = {model.name: model for model in gateway.models()}
        assert (models["digits"].image_size, models["digits"].labels[9]) == (32, "9")
        assert gateway.wait_ready()["models"] == ["digits", "tagger"]


def test_every_result_of_a_stream_names_its_picture(server: Server, digit_files: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(digit_files[0])
    (tmp_path / "b.png").write_text("no picture")
    given = [str(tmp_path / "a.png"), bytearray(digit_files[1]), tmp_path / "b.png", tmp_path / "c.png"]
    with Client(server.url) as gateway:
        results = list(gateway.classify_each(given, batch_size=2))
    assert [result.source for result in results] == [given[0], None, str(given[2]), str(given[3])]
    assert [result.is_ok for result in results] == [True, True, False, False]


def test_what_is_no_picture_is_told_with_what_is_one() -> None:
    async def asynchronously() -> None:
        async with AsyncClient() as gateway:
            await gateway.classify(7)  # type: ignore[arg-type]

    with Client() as gateway:
        for wrong in (7, io.BytesIO(), [3.5], {"a": 1}):
            with pytest.raises(TypeError, match="bytes or a path"):
                gateway.classify(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="several pictures"):
            list(gateway.tag_each("digit.png"))
    with pytest.raises(TypeError, match="bytes or a path"):
        asyncio.run(asynchronously())


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with Client("http://127.0.0.1:9") as client, pytest.raises(ClientError, match=r"pipe\.png: a pipe that nobody"):
        client.classify(pipe)
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(pipe.write_bytes, bytes(200_000))
        time.sleep(0.2)  # it waits for a reader
        content, _ = read_picture(pipe)
        writing.result(10)
    assert content == bytes(200_000)


def test_refusals_are_exceptions(server: Server, guarded: Guarded, digit_files: list[bytes]) -> None:
    with Client(server.url) as gateway:
        with pytest.raises(RefusedError) as caught:
            gateway.classify(digit_files[0], model="nobody")
        assert (caught.value.status, caught.value.code) == (404, "unknown_model")
        assert caught.value.detail.endswith("; served: digits, tagger")
        assert caught.value.request_id
        with pytest.raises(RefusedError, match="no label"):
            gateway.tag(digit_files[0], include_labels=["a, b"])
    with Client(guarded.url) as gateway, pytest.raises(UnauthorizedError):
        gateway.classify(digit_files[0])
    with Client(guarded.url, api_key=guarded.key) as gateway:
        assert gateway.classify(digit_files[0]).results[0].is_ok


def test_a_stream_is_whole_ordered_and_tells_of_each_failure(
    server: Server, digit_files: list[bytes], tmp_path: Path
) -> None:
    pictures = [*digit_files[:20], b"text", b"", *digit_files[20:40], tmp_path / "gone.png", b"x", b"y", b"z"]
    expected = ["undecodable_image" if i in (20, 43, 44, 45) else None for i in range(46)]
    with Client(server.url) as gateway:
        alone = [gateway.classify(file).results[0].predictions[0].label for file in digit_files[:20]]
        # The last batch is of broken pictures alone, which the gateway refuses as a whole.
        results = list(gateway.classify_each(pictures, batch_size=7, connections=3))
        unordered = list(gateway.classify_each(pictures, batch_size=7, connections=3, ordered=False))

    async def asynchronously() -> list[Result]:
        async with AsyncClient(server.url) as gateway:
            return [result async for result in gateway.classify_each(pictures, batch_size=7, connections=3)]

    assert [result.id for result in results] == [str(i) for i in range(46)]
    assert [result.predictions[0].label for result in results[:20]] == alone
    codes = [result.error.code if result.error else None for result in results]
    assert codes[21] in ("undecodable_image", "empty_body")
    assert codes[42] == "unreadable_file"
    assert [code for i, code in enumerate(codes) if i not in (21, 42)] == [
        code for i, code in enumerate(expected) if i not in (21, 42)
    ]
    assert sorted((result.id for result in unordered), key=int) == [result.id for result in results]
    assert [result.id for result in asyncio.run(asynchronously())] == [result.id for result in results]


def test_it_asks_again_after_retry_after_and_not_before() -> None:
    script: Script = [
        (503, {"Retry-After": "1"}, problem(503, "queue_full")),
        (0, {}, b""),
        (502, {}, b"<html>a proxy's page</html>"),
        (200, {}, ANSWER),
    ]
    with scripted(script) as (url, asked), Client(url, patience=Patience(deadline_s=30)) as gateway:
        assert gateway.classify(b"x").results[0].predictions[0].label == "7"
    pauses = [float(b["at"]) - float(a["at"]) for a, b in itertools.pairwise(asked)]
    assert len(asked) == 4
    assert pauses[0] >= 1
    assert pauses[1] > 0.1
    left_ms = [int(request["x-request-timeout-ms"]) for request in asked]
    assert left_ms[0] <= 30_000
    assert left_ms[0] - left_ms[3] >= 1000 * (float(asked[3]["at"]) - float(asked[0]["at"])) - 900


@pytest.mark.parametrize(
    ("answer", "expected", "requests"),
    [
        ((503, {"Retry-After": "60"}, problem(503, "draining")), UnavailableError, 1),  # it would be too late
        ((503, {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, b"a proxy's"), UnavailableError, 1),
        ((504, {}, problem(504, "deadline_exceeded")), UnavailableError, 2),
        ((422, {}, problem(422, "undecodable_image")), RefusedError, 1),
        ((413, {}, b"<html>"), RefusedError, 1),
        ((404, {}, b"<html>"), NotAGatewayError, 1),
        ((200, {}, {"hello": "world"}), NotAGatewayError, 1),
        ((200, {"Content-Encoding": "gzip"}, b"not gzip"), NotAGatewayError, 1),
    ],
)
def test_it_gives_up(answer: tuple[int, dict[str, str], object], expected: type[Exception], requests: int) -> None:
    patience = Patience(deadline_s=3, first_pause_s=2)
    with scripted([answer]) as (url, asked), Client(url, patience=patience) as gateway:
        with pytest.raises(expected) as caught:
            gateway.classify(b"x")
        assert len(asked) == requests
        if isinstance(caught.value, UnavailableError) and requests == 1:
            assert caught.value.retry_after_s is not None
            assert caught.value.retry_after_s >= 60


@pytest.mark.parametrize("key", ["clé", "two words", "line\nbreak"])
def test_what_is_no_key_is_an_error_of_the_client(key: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ClientError, match="API key"):
            kind(api_key=key)


def test_nobody_is_there() -> None:
    began = time.monotonic()
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, patience=Patience(retry_for_s=0.5)) as gateway:
        with pytest.raises(UnreachableError, match=url):
            gateway.classify(b"x")
        with pytest.raises(UnreachableError):
            list(gateway.tag_each([b"x"] * 40, batch_size=1))
    assert time.monotonic() - began < 20


def test_patience_outlasts_any_number_of_failures() -> None:
    """A conversation without its pauses, which would take an afternoon."""
    call = ask("classify", one_batch(b"x"), {}, Patience())
    next(call)
    for _ in range(1100):
        pause = call.send(Reply(503, {}, b"a proxy's page"))
        assert isinstance(pause, Pause)
        assert pause.seconds <= Patience.longest_pause_s
        call.send(None)
    with pytest.raises(StopIteration) as end:
        call.send(Reply(200, {}, orjson.dumps(ANSWER)))
    assert end.value.value.results[0].predictions[0].label == "7"


def test_what_failed_for_the_moment_beside_others_is_asked_again() -> None:
    (good,) = ANSWER["results"]  # type: ignore[misc]
    late = {"id": "1", "status": "error", "error": {"status": 504, "code": "deadline_exceeded", "detail": "late"}}
    script: Script = [(200, {}, {**ANSWER, "results": [good, late]}), (200, {}, ANSWER)]
    with scripted(script) as (url, asked), Client(url) as gateway:
        results = gateway.classify([b"x", b"y"]).results
        assert len(asked) == 2
    assert [(result.id, result.is_ok) for result in results] == [("0", True), ("1", True)]


@pytest.mark.parametrize(
    ("status", "code"), [(503, "queue_full"), (422, "undecodable_image"), (0, "deadline_exceeded")]
)
def test_what_fails_again_takes_no_answer_from_the_others(status: int, code: str) -> None:
    (good,) = ANSWER["results"]  # type: ignore[misc]
    late = {"id": "1", "status": "error", "error": {"status": 504, "code": "deadline_exceeded", "detail": "late"}}
    script: Script = [(200, {}, {**ANSWER, "results": [good, late]}), (status, {}, problem(status, code))]
    with scripted(script) as (url, asked), Client(url, patience=Patience(retry_for_s=1.0)) as gateway:
        first, second = gateway.classify([b"x", b"y"]).results
        assert len(asked) > 1
    assert first.is_ok
    assert second.error is not None
    assert second.error.code == code


def test_what_a_proxy_finds_too_large_is_sent_in_smaller_batches() -> None:
    """nginx takes 1 MB unless it is told otherwise, and answers with a page of its own."""
    page = (413, {}, b"<html>413 Request Entity Too Large</html>")
    with scripted([page, (200, {}, ANSWER), page]) as (url, asked), Client(url) as gateway:
        first, second = gateway.classify_each([b"x", b"y"], batch_size=2)
        assert len(asked) == 3
    assert first.predictions[0].label == "7"
    assert second.error is not None
    assert (second.error.status, second.error.code) == (413, "body_too_large")


def test_a_stream_that_ends_gives_what_it_has_first() -> None:
    script: Script = [(200, {}, ANSWER)] * 3 + [(401, {}, problem(401, "unauthorized"))]
    seen: list[str] = []
    with scripted(script) as (url, asked), Client(url) as gateway:
        stream = gateway.classify_each([b"x"] * 50, batch_size=1, connections=1)
        with pytest.raises(UnauthorizedError):
            for result in stream:
                seen.append(result.id)
        assert len(asked) == 4
    assert seen == ["0", "1", "2"]


def test_who_leaves_a_stream_waits_for_nothing() -> None:
    script: Script = [(200, {}, ANSWER), (503, {"Retry-After": "40"}, problem(503, "queue_full"))]
    with scripted(script) as (url, asked), Client(url) as gateway:
        stream = gateway.classify_each([b"x"] * 50, batch_size=1, connections=1)
        assert next(stream).id == "0"
        until(lambda: len(asked) > 1, "a further picture is asked about")
        left_at = time.monotonic()
        stream.close()
        assert time.monotonic() - left_at < 5
        until(lambda: not any(thread.name.startswith("tresnet-client") for thread in threads()), "its threads end", 10)


def test_no_connections_are_an_error_not_a_wait() -> None:
    async def asynchronously() -> None:
        async with AsyncClient() as gateway:
            async for _ in gateway.classify_each([b"x"], connections=0):
                pass

    with pytest.raises(ValueError):
        asyncio.run(asyncio.wait_for(asynchronously(), 10))
    with Client() as gateway, pytest.raises(ValueError):
        next(gateway.classify_each([b"x"], connections=0))


def test_heat_maps_are_typed() -> None:
    entry = {"label": "7", "label_id": 7, "score": 0.9, "heat_map": [[0.5, -1.0], [2.0, 0.0]]}
    result = {"id": "0", "status": "ok", "width": 4, "height": 3, "heat_map_box": [0, 0, 3, 3],
              "predictions": [entry, {**entry, "heat_map": None}]}  # fmt: skip
    with scripted([(200, {}, {**ANSWER, "results": [result]})]) as (url, _), Client(url) as gateway:
        first, second = gateway.classify(b"x", explain=True).results[0].predictions
    assert first.heat_map == HeatMap(((0.5, -1.0), (2.0, 0.0)), (0, 0, 3, 3))
    assert second.heat_map is None


def test_heat_maps_of_a_real_picture(server: Server, digit_files: list[bytes]) -> None:
    with Client(server.url) as gateway:
        (result,) = gateway.tag(digit_files[0], threshold=0, explain=True).results
        assert gateway.tag(digit_files[0], threshold=0).results[0].tags[0].heat_map is None
    maps = [tag.heat_map for tag in result.tags]
    assert len(maps) == 5
    assert all(heat_map is not None and heat_map.box == (0, 0, 64, 64) for heat_map in maps)


def test_it_needs_httpx_alone() -> None:
    heavy = "torch", "numpy", "fastapi", "pydantic", "PIL", "tritonclient"
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, client; print([name for name in {heavy} if name in sys.modules])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout.strip() == "[]"
