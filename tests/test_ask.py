"""``tresnet classify`` and ``tresnet tag``: many pictures in order, in three forms; what is left if all goes wrong."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import signal
import socket
import subprocess
from pathlib import Path
from threading import Thread

import pytest
from conftest import TRESNET, Server, free_port, run_side_by_side, run_tresnet, start_server, until

KEYS = {"path", "id", "status", "width", "height", "predictions"}


@pytest.fixture
def photos(tmp_path: Path, digit_files: list[bytes]) -> Path:
    """Three pictures in a folder and one below it, beside a broken one, a text and a hidden file."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, content in {
        "b.png": digit_files[1], "a.PNG": digit_files[0], "c.jpg": b"no picture", "more/d.png": digit_files[2],
        "notes.txt": b"hello", ".hidden.png": digit_files[3],
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    return folder


def test_files_folders_patterns_lists_and_stdin(server: Server, photos: Path) -> None:
    cwd = photos.parent

    def ask(*words: str, stdin: bytes = b"") -> tuple[int, list[dict[str, object]]]:
        done = subprocess.run(
            [TRESNET, "classify", "--json", "--url", server.url, *words],
            cwd=cwd, input=stdin, capture_output=True, timeout=100, check=False,
        )  # fmt: skip
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    status, lines = ask("photos")
    assert [line["path"] for line in lines] == [f"photos/{name}" for name in ("a.PNG", "b.png", "c.jpg", "more/d.png")]
    assert [line["status"] for line in lines] == ["ok", "ok", "error", "ok"]
    assert (status, lines[2]["error"]["code"]) == (1, "undecodable_image")  # type: ignore[index]
    status, (line,) = ask("photos/notes.txt", stdin=b"")
    assert (status, line["path"]) == (1, "photos/notes.txt")
    status, lines = ask("photos/**/*.png", "-", stdin=(photos / "b.png").read_bytes())
    assert (status, [line["path"] for line in lines]) == (0, ["photos/b.png", "photos/more/d.png", "-"])
    assert set(lines[0]) == KEYS
    best = [line["predictions"][0]["label"] for line in lines]  # type: ignore[index]
    assert best[2] == best[0]
    status, lines = ask("photos/b.png", "photos/typo.png", "nothing/*.png")
    assert (status, [line["status"] for line in lines]) == (1, ["ok", "error", "error"])
    status, lines = ask("--from", "-", stdin=b"photos/a.PNG\nphotos/gone.png\n")
    assert (status, [line["status"] for line in lines]) == (1, ["ok", "error"])
    assert lines[1]["error"]["code"] == "unreadable_file"  # type: ignore[index]


def test_csv_and_table(server: Server, photos: Path) -> None:
    done = run_tresnet("tag", photos, "--csv", "--threshold", 0, "--top-k", 2, "--url", server.url, cwd=photos.parent)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(Path(row["path"]).name, row["status"]) for row in rows] == [
        (name, "ok") for name in ("a.PNG", "a.PNG", "b.png", "b.png")
    ] + [("c.jpg", "error"), ("d.png", "ok"), ("d.png", "ok")]
    assert float(rows[0]["score"]) >= float(rows[1]["score"])
    assert (float(rows[0]["threshold"]), rows[4]["error"].partition(":")[0]) == (0, "undecodable_image")
    done = run_tresnet("classify", "photos", "--top-k", 1, "--url", server.url, cwd=photos.parent)
    assert [word in done.stdout for word in ("d.png", "score", "threshold")] == [True, True, False]
    assert [line.split()[1:4:2] for line in done.stdout.splitlines() if "c.jpg" in line] == [
        ["photos/c.jpg", "undecodable_image"]
    ]
    assert "c.jpg" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("form", [(), ("--csv",)])
def test_a_name_that_is_no_text_comes_out_as_it_is(server: Server, photos: Path, form: tuple[str, ...]) -> None:
    (photos / "b.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    done = subprocess.run(
        [TRESNET, "classify", "photos/more", "--top-k", "1", *form, "--url", server.url, b"photos/caf\xe9.png"],
        cwd=photos.parent, capture_output=True, timeout=100, check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},  # as in most people's locales
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"caf\xe9.png" in done.stdout
    assert b"d.png" in done.stdout


def test_heat_maps_and_embeddings_come_as_json(server: Server, photos: Path) -> None:
    done = run_tresnet(
        "tag", photos / "b.png", "--threshold", 0, "--json", "--version", 1,
        "--include-labels", "tag 3", "--include-labels", "tag 1",
        "--explain", "--embedding", "--url", server.url,
        cwd=photos.parent,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert (len(answer["embedding"]), answer["heat_map_box"]) == (2048, [0, 0, 64, 64])
    assert sorted(tag["label"] for tag in answer["tags"]) == ["tag 1", "tag 3"]
    assert all(len(tag["heat_map"]) == 2 == len(tag["heat_map"][0]) for tag in answer["tags"])


def test_wrong_usage_is_2(server: Server, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    for words, said in (
        (("classify",), "see --help"),
        (("classify", "empty"), "empty holds no picture\nerror: no picture to ask about"),
        (("classify", "nothing.png"), "nothing.png: no such file or folder"),
        (("classify", "empty/*.png"), "no file matches"),
        (("classify", "-", "--from", "-"), "not both"),
        (("tag", "a.png", "--json", "--csv"), "exclude each other"),
        (("tag", "a.png", "--explain"), "add --json"),
        (("classify", "a.png", "--csv", "--embedding"), "add --json"),
        (("tag", "a.png", "--url", server.url, "--model", "nobody"), "nobody"),
        (("tag", "a.png", "--url", server.url, "--version", "9"), "version '9'"),
        (("tag", "a.png", "--url", f"{server.url}/somewhere"), ""),
        (("tag", "a.png", "--url", "localhost:8080"), "http://HOST:PORT"),
        (("tag", "a.png", "--url", "http://[::"), "http://HOST:PORT"),
    ):
        done = run_tresnet(*words, cwd=tmp_path)
        lines = max(1, len(said.splitlines()))
        assert (done.returncode, len(done.stderr.splitlines()), said in done.stderr) == (2, lines, True), done.stderr


def test_each_way_of_being_away_has_its_sentence(server: Server, photos: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # the kernel takes connections for it
        said = {
            f"http://127.0.0.1:{hanging.getsockname()[1]}": "it hangs",
            f"http://127.0.0.1:{free_port()}": "is not there; `tresnet serve` starts one",
            server.url.replace("http", "https"): f"speaks http, not https: give {server.url}",
        }
        calls = [("classify", "photos/b.png", "--retry-for", 0, "--url", url) for url in said]
        for words, done in zip(said.values(), run_side_by_side(calls, cwd=photos.parent, timeout=25), strict=True):
            assert (done.returncode, len(done.stderr.splitlines()), words in done.stderr) == (3, 1, True), done.stderr


def test_a_killed_gateway_loses_no_finished_answer_and_a_new_one_is_taken_up(
    server: Server, digit_files: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    for index in range(600):
        (tmp_path / "folder" / f"{index:03}.png").write_bytes(digit_files[index % 64])
    port, options = free_port(), ("--triton-url", f"grpc://{server.triton_address()}")

    running = contextlib.ExitStack()

    def ask(output: Path, retry_for_s: float) -> subprocess.Popen[bytes]:
        words = ("tag", "folder", "--json", "--batch-size", "8", "--url", f"http://127.0.0.1:{port}")
        with output.open("wb") as stdout, output.with_suffix(".err").open("wb") as stderr:
            asking = subprocess.Popen(
                [TRESNET, *words, "--retry-for", str(retry_for_s)], cwd=tmp_path, stdout=stdout, stderr=stderr
            )
        running.callback(asking.kill)
        return asking

    def lines(output: Path) -> list[dict[str, object]]:
        return [json.loads(line) for line in output.read_bytes().splitlines()] if output.exists() else []

    def start() -> Server:
        gateway = start_server(tmp_path, *options, port=port)
        running.callback(gateway.process.wait, 40)
        running.callback(gateway.process.send_signal, signal.SIGINT)
        return gateway

    with running:
        gateway = start()
        gateway.wait_ready(60)
        first, output = tmp_path / "first", tmp_path / "second"
        asking = ask(first, 0.3)
        until(lambda: first.exists() and first.read_bytes().count(b"\n") > 50, "no answers")
        gateway.process.kill()
        gateway.process.wait(10)
        seen = len(lines(first))  # flushed before the end of the command
        assert asking.wait(60) == 3, first.with_suffix(".err").read_text()
        finished = lines(first)
        assert 50 < seen <= len(finished) < 600
        paths = [line["path"] for line in finished]
        assert paths == sorted(set(paths)), "in order, none twice"
        assert all(line["status"] == "ok" for line in finished)
        assert f"{len(finished)} of 600 pictures were answered" in first.with_suffix(".err").read_text()

        asking = ask(output, 120)  # begins while nobody is there
        gateway = start()
        until(lambda: output.exists() and output.read_bytes().count(b"\n") > 50, "no answers")
        gateway.process.kill()
        gateway.process.wait(10)
        start()
        assert asking.wait(120) == 0, output.with_suffix(".err").read_text()
        assert [line["path"] for line in lines(output)] == [f"folder/{index:03}.png" for index in range(600)]
        assert all(line["status"] == "ok" for line in lines(output))


def test_progress_is_shown_to_a_terminal_on_stderr(server: Server, photos: Path) -> None:
    terminal, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
            while True:
                shown.append(os.read(terminal, 4096))

    reader = Thread(target=read)
    reader.start()
    done = subprocess.run(
        [TRESNET, "classify", *["photos"] * 3, "--json", "--url", server.url],
        cwd=photos.parent, stdout=subprocess.PIPE, stderr=theirs, timeout=100, check=False,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    reader.join()
    os.close(terminal)
    assert len(done.stdout.splitlines()) == 12
    assert b"12/12" in b"".join(shown)
