"""Pictures over HTTP, through the gateway and a real Triton."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from conftest import Server
from PIL import Image

from tresnet.checkpoint import build_model, load_checkpoint
from tresnet.picture import prepare


def post(server: Server, path: str, data: bytes = b"", **options: object) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", content=data, timeout=30, **options)  # type: ignore[arg-type]


def eager_scores(checkpoint: Path, files: list[bytes], task: str) -> np.ndarray:
    loaded = load_checkpoint(checkpoint)
    x = np.stack([prepare(file, loaded.facts.preprocessing).pixels for file in files])
    with torch.inference_mode():
        logits = build_model(loaded)(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255) / loaded.facts.temperature
    return (logits.softmax(1) if task == "classify" else logits.sigmoid()).numpy()


def oversized_png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def truncated_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((300, 200), 60).save(buffer, "JPEG")
    return buffer.getvalue()[: buffer.tell() // 2]


def test_classify_equals_the_eager_network(server: Server, digit_files: list[bytes]) -> None:
    expected = eager_scores(server.folder / "runs/digits/best.pt", digit_files[:8], "classify")
    for file, scores in zip(digit_files[:8], expected, strict=True):
        answer = post(server, "/classify?top_k=10", file).json()
        assert answer["model"] == {"name": "digits", "version": "1", "task": "classify"}
        (result,) = answer["results"]
        assert (result["status"], result["width"], result["height"]) == ("ok", 64, 64)
        served = {entry["label_id"]: entry["score"] for entry in result["predictions"]}
        assert max(abs(served[i] - scores[i]) for i in range(10)) < 1e-4
        assert [entry["score"] for entry in result["predictions"]] == sorted(served.values(), reverse=True)
        assert all(score == float(f"{score:.6g}") for score in served.values())


def test_tag_equals_the_eager_network(server: Server, digit_files: list[bytes]) -> None:
    (scores,) = eager_scores(server.folder / "tagger.pt", digit_files[:1], "tag")
    (result,) = post(server, "/tag?threshold=0", digit_files[0]).json()["results"]
    served = {entry["label_id"]: entry["score"] for entry in result["tags"]}
    assert max(abs(served[i] - scores[i]) for i in range(5)) < 1e-4
    assert all(entry["threshold"] == 0 and entry["label"] == f"tag {entry['label_id']}" for entry in result["tags"])
    (result,) = post(server, "/tag", digit_files[0]).json()["results"]
    assert {entry["label_id"] for entry in result["tags"]} == {i for i in range(5) if scores[i] >= 0.5}
    assert all(entry["score"] == float(f"{entry['score']:.6g}") for entry in result["tags"])


def test_tag_parameters(server: Server, digit_files: list[bytes]) -> None:
    chosen = post(server, "/tag?threshold=0&include_labels=tag 1,tag 3&exclude_labels=tag 3", digit_files[0]).json()
    assert [entry["label"] for entry in chosen["results"][0]["tags"]] == ["tag 1"]
    assert len(post(server, "/tag?threshold=0&max_tags=2", digit_files[0]).json()["results"][0]["tags"]) == 2


def test_three_forms_of_body_agree(server: Server, digit_files: list[bytes]) -> None:
    file = digit_files[3]
    url = f"{server.url}/classify"
    bodies = [
        httpx.post(url, content=file, headers={"Content-Type": kind})
        for kind in ("image/png", "application/octet-stream")
    ]
    bodies.append(httpx.post(url, content=file, headers={"Content-Type": "application/x-www-form-urlencoded"}))
    bodies.append(httpx.post(url, content=file))
    bodies.append(httpx.post(url, files={"image": ("a.png", file)}))
    encoded = base64.b64encode(file).decode()
    bodies.append(httpx.post(url, json={"images": [{"id": "x", "b64": encoded}], "parameters": {"top_k": 5}}))
    predictions = [body.json()["results"][0]["predictions"] for body in bodies]
    for other in predictions[1:]:
        assert [entry["label"] for entry in other] == [entry["label"] for entry in predictions[0]]
    assert bodies[-1].json()["results"][0]["id"] == "x"


def test_one_bad_picture_fails_alone(server: Server, digit_files: list[bytes]) -> None:
    parts = [("image", ("a", digit_files[0])), ("image", ("b", b"no picture")), ("image", ("c", digit_files[1]))]
    answer = httpx.post(f"{server.url}/classify", files=parts)
    assert answer.status_code == 200
    assert [result["status"] for result in answer.json()["results"]] == ["ok", "error", "ok"]
    error = answer.json()["results"][1]["error"]
    assert (error["status"], error["code"]) == (422, "undecodable_image")


@pytest.mark.parametrize(
    ("path", "data", "headers", "status", "code"),
    [
        ("/classify", b"just some text\n", {}, 422, "undecodable_image"),
        ("/classify", b"just some text\n", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ("/classify", b"\x1f\x8b", {"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        ("/classify/", b"a", {}, 404, "not_found"),
        ("/classify", b"", {}, 400, "empty_body"),
        ("/classify", truncated_jpeg(), {}, 422, "undecodable_image"),
        ("/classify", oversized_png(), {}, 413, "too_many_pixels"),
        ("/classify", b"{", {"Content-Type": "application/json"}, 400, "malformed_request"),
        ("/classify", b'{"images": []}', {"Content-Type": "application/json"}, 400, "missing_image"),
        ("/classify", b"x", {"Content-Type": "multipart/form-data"}, 400, "malformed_request"),
        ("/classify?model=nobody", b"DIGIT", {}, 404, "unknown_model"),
        ("/classify?version=99", b"DIGIT", {}, 404, "unknown_version"),
        ("/classify?model=tagger", b"DIGIT", {}, 422, "bad_parameter"),
        ("/classify?model=&version=", b"a", {}, 422, "undecodable_image"),
        ("/classify?top_k=-1", b"DIGIT", {}, 422, "bad_parameter"),
        ("/classify?threshold=0.5", b"DIGIT", {}, 422, "bad_parameter"),
        ("/tag?include_labels=nothing", b"DIGIT", {}, 422, "bad_parameter"),
        ("/classify", b"DIGIT", {"X-Request-Timeout-Ms": "soon"}, 422, "bad_parameter"),
        ("/nowhere", b"", {}, 404, "not_found"),
        ("/classify", b"0" * (33 * 2**20), {}, 413, "body_too_large"),
    ],
)
def test_errors(
    server: Server, digit_files: list[bytes], path: str, data: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = post(
        server, path, digit_files[0] if data == b"DIGIT" else data, headers={**headers, "X-Request-ID": "abc"}
    )
    document = answer.json()
    assert (answer.status_code, document["code"], document["status"]) == (status, code, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["request_id"] == answer.headers["x-request-id"] == "abc"
    assert document["instance"] == path.partition("?")[0]


def test_wrong_method_and_missing_part(server: Server, digit_files: list[bytes]) -> None:
    answer = httpx.get(f"{server.url}/classify")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    answer = httpx.post(f"{server.url}/classify", files={"photo": ("a.png", digit_files[0])})
    assert (answer.status_code, answer.json()["code"]) == (400, "missing_image")
    assert "'photo': with curl, -F image=@FILE" in answer.json()["detail"]
    answer = httpx.post(f"{server.url}/classify", files={"image": digit_files[0], "photo": digit_files[1]})
    assert "the part 'photo' is a file" in answer.json()["detail"]


def test_a_form_may_hold_parameters(server: Server, digit_files: list[bytes]) -> None:
    def ask(**fields: str | list[str]) -> Any:
        return httpx.post(f"{server.url}/tag", data=fields, files={"image": digit_files[0]}).json()

    labels = ["tag 0", "tag 1", "tag 4"]
    answer = ask(model="tagger", threshold="0", include_labels=labels)
    assert answer["model"]["name"] == "tagger"
    assert {tag["label"] for tag in answer["results"][0]["tags"]} == set(labels)
    assert len(ask(threshold="0", max_tags="1")["results"][0]["tags"]) == 1
    assert "did you mean 'model'?" in ask(modle="tagger")["detail"]
    assert "max_tags" in ask(max_tags=["1", "2"])["detail"]


def test_json_is_taken_as_people_have_it(server: Server, digit_files: list[bytes]) -> None:
    expected = post(server, "/classify", digit_files[0]).json()["results"][0]["predictions"]

    def ask(document: dict[str, Any], **headers: str) -> Any:
        return post(server, "/classify", json.dumps(document).encode(), headers=headers).json()

    encoded = base64.encodebytes(digit_files[0]).decode()  # in lines, as the command base64 writes it
    assert encoded.count("\n") > 1
    assert ask({"images": [{"b64": encoded}]})["results"][0]["predictions"] == expected  # without a type
    url = f"data:image/png;base64,{encoded}"
    assert "images[0].b64 is not base64 text: leave out" in ask({"images": [{"b64": url}]})["detail"]
    assert "unknown 'picture' in the JSON body" in ask({"picture": encoded})["detail"]
    curl = {"Content-Type": "application/x-www-form-urlencoded"}  # its -d
    assert ask({"images": [{"b64": encoded}]}, **curl)["results"][0]["predictions"] == expected
    assert "--data-binary" not in ask({"images": [{"b64": "AAAA"}]}, **curl)["detail"]


def test_slips_of_the_hand_are_told_with_what_was_meant(server: Server, digit_files: list[bytes]) -> None:
    lineless = digit_files[0].replace(b"\r", b"").replace(b"\n", b"")  # as curl -d sends a file
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert "--data-binary @FILE" in post(server, "/classify", lineless, headers=form).json()["detail"]
    assert "--data-binary" not in post(server, "/classify", lineless).json()["detail"]
    assert post(server, "/classify", digit_files[0], headers=form).status_code == 200
    assert "did you mean 'top_k'?" in post(server, "/classify?topk=2", digit_files[0]).json()["detail"]
    assert "known are model," in post(server, "/classify?xyz=2", digit_files[0]).json()["detail"]


def test_embedding_and_hugging_face_form(server: Server, digit_files: list[bytes]) -> None:
    result = post(server, "/classify?embedding=true", digit_files[0]).json()["results"][0]
    assert len(result["embedding"]) == 2048
    listed = post(server, "/classify?format=hf&top_k=3", digit_files[0]).json()
    assert len(listed) == 3
    assert set(listed[0]) == {"label", "score"}


def test_sixty_four_clients_are_answered_right_and_batched(server: Server, digit_files: list[bytes]) -> None:
    expected = eager_scores(server.folder / "runs/digits/best.pt", digit_files, "classify").argmax(1)
    before = server.metric("tresnet_batch_size_count"), server.metric("tresnet_batch_size_sum")
    with httpx.Client(limits=httpx.Limits(max_connections=64), timeout=60) as client, ThreadPoolExecutor(64) as pool:
        jobs = [(i, pool.submit(client.post, f"{server.url}/classify", content=digit_files[i])) for i in range(64)] * 1
        for index, job in jobs:
            answer = job.result()
            assert answer.status_code == 200
            assert answer.json()["results"][0]["predictions"][0]["label"] == str(expected[index])
    batches = server.metric("tresnet_batch_size_count") - before[0]
    pictures = server.metric("tresnet_batch_size_sum") - before[1]
    assert pictures == 64
    assert batches < 48, "batches did not grow under load"


def test_state_routes(server: Server) -> None:
    models = {model["name"]: model for model in httpx.get(f"{server.url}/models").json()["models"]}
    assert models["digits"]["labels"] == [str(i) for i in range(10)]
    assert models["digits"]["preprocessing"]["image_size"] == 32
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json", "/"):
        assert httpx.get(server.url + path).status_code == 200
    assert server.metric("tresnet_triton_up") == 1


def test_expired_request(server: Server) -> None:
    """A picture whose decoding alone takes longer than its deadline."""
    buffer = io.BytesIO()
    Image.effect_noise((1500, 1500), 60).save(buffer, "PNG")
    assert post(server, "/classify", buffer.getvalue()).status_code == 200
    for _ in range(4):
        answer = post(server, "/classify", buffer.getvalue(), headers={"X-Request-Timeout-Ms": "1"})
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
