"""``tresnet tag FOLDER --json`` beside wrk and curl on the same gateway and pictures: what of it reaches the shell.

``python -m benchmarks.serving.command_line --repository DIR`` serves DIR, then in turns measures the gateway by wrk
(pictures one by one, and in the forms that the command sends), and over 1,000 pictures curl, which sends the same forms
made before, and the command. wrk goes on for as long as it is told; curl's job has a beginning and an end, as the
command's has. On a machine where all share the cores, the command's own work is taken from the gateway's, and that is
part of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import sklearn
from PIL import Image

from benchmarks.serving.load import read_wrk

_LUA = Path(__file__).with_name("post_each.lua")
_TRESNET = str(Path(sys.executable).with_name("tresnet"))
_PICTURES, _BATCH, _CONNECTIONS = 1000, 16, 4
_SIZE = (500, 375)


def write_pictures(folder: Path) -> list[Path]:
    """1,000 different JPEGs: pieces of one photograph, each a little further to the right and down."""
    folder.mkdir()
    source = Image.open(Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg").resize((900, 600))
    paths = []
    for index in range(_PICTURES):
        left, top = index % 40 * 10, index // 40 * 9
        path = folder / f"{index:04}.jpg"
        source.crop((left, top, left + _SIZE[0], top + _SIZE[1])).save(path, quality=90)
        paths.append(path)
    return paths


def write_forms(pictures: list[Path], folder: Path) -> tuple[list[Path], str]:
    """The bodies that the command sends, and their type."""
    folder.mkdir()
    kind = "multipart/form-data; boundary=4d1ad2"
    forms = []
    for first in range(0, len(pictures), _BATCH):
        parts = [("image", (path.name, path.read_bytes())) for path in pictures[first : first + _BATCH]]
        request = httpx.Request("POST", "http://gateway", files=parts, headers={"Content-Type": kind})
        forms.append(folder / f"{first:04}")
        forms[-1].write_bytes(request.read())
    return forms, kind


def by_wrk(url: str, bodies: list[Path], kind: str, connections: int, seconds: float) -> float:
    """Bodies a second."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.write("".join(f"{path}\n" for path in bodies))
        listed.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "60s", "--latency",
                   "-s", str(_LUA), f"{url}/tag"]  # fmt: skip
        environment = {"BODIES": listed.name, "CONTENT_TYPE": kind, "PATH": os.environ["PATH"]}
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout  # noqa: S603
    load = read_wrk(said)
    if load.failed:
        answer = httpx.post(f"{url}/tag", content=bodies[0].read_bytes(), headers={"Content-Type": kind})
        raise RuntimeError(f"{load.failed} requests failed; the next one: {answer.status_code} {answer.text[:300]}")
    return load.requests_per_s


def by_curl(url: str, forms: list[Path], kind: str) -> float:
    """Pictures a second over the whole run of one curl that sends every form, as many at once as the command does."""
    options = f'url = "{url}/tag"\nheader = "Content-Type: {kind}"\noutput = "/dev/null"\nfail\nsilent\nshow-error\n'
    transfers = [f'data-binary = "@{form}"\n{options}' for form in forms]
    command = ["curl", "--parallel", "--parallel-max", str(_CONNECTIONS), "--config", "-"]
    began = time.perf_counter()
    subprocess.run(command, input="next\n".join(transfers), text=True, check=True)  # noqa: S603
    return _PICTURES / (time.perf_counter() - began)


def by_command(url: str, folder: Path) -> dict[str, float]:
    """Pictures a second, over the whole run of the command and from its first answer to its last; its CPU time."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(  # noqa: S603
        [_TRESNET, "tag", str(folder), "--json", "--url", url, "--batch-size", str(_BATCH),
         "--connections", str(_CONNECTIONS)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None  # noqa: S101
    moments = [time.perf_counter() for _ in process.stdout]
    if process.wait() or len(moments) != _PICTURES:
        raise RuntimeError(f"{len(moments)} answers, exit status {process.returncode}")
    ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "whole_run": _PICTURES / (ended - began),
        "first_to_last": (_PICTURES - _BATCH) / (moments[-1] - moments[0]),
        "cpu_s": cpu_s,
        "until_first_answer_s": moments[0] - began,
    }


@contextmanager
def gateway(repository: Path, folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            [_TRESNET, "serve", "--port", str(port), "--repository", str(repository.resolve())],
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + 120
        while time.monotonic() < ends and process.poll() is None:
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        else:
            raise RuntimeError(f"not ready: {(folder / 'serve.log').read_text()[-2000:]}")
        yield url
    finally:
        process.terminate()
        process.wait(40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures = write_pictures(folder / "pictures")
        forms, kind = write_forms(pictures, folder / "forms")
        with gateway(given.repository, folder) as url:
            by_command(url, folder / "pictures")  # to warm up
            for _ in range(given.rounds):
                rounds.append(
                    {
                        "wrk_single": by_wrk(url, pictures, "image/jpeg", _BATCH, given.seconds),
                        "wrk_forms": _BATCH * by_wrk(url, forms, kind, _CONNECTIONS, given.seconds),
                        "curl_whole_run": by_curl(url, forms, kind),
                        **by_command(url, folder / "pictures"),
                    }
                )
                print({key: round(value, 2) for key, value in rounds[-1].items()}, flush=True)
    medians = {key: round(statistics.median(row[key] for row in rounds), 2) for key in rounds[0]}
    best = max(medians["wrk_single"], medians["wrk_forms"])
    report = {
        "setting": f"{_PICTURES} JPEGs of {_SIZE[0]}x{_SIZE[1]}, {os.cpu_count()} cores shared by client, gateway and "
        f"model; wrk with {_BATCH} connections of single pictures, and {_CONNECTIONS} of forms of {_BATCH}; curl and "
        f"the command with {_CONNECTIONS} of forms",
        "load_at_the_end": os.getloadavg()[0],
        "medians": medians,
        "share_of_curl": round(statistics.median(row["whole_run"] / row["curl_whole_run"] for row in rounds), 3),
        "share_of_best_wrk": {key: round(medians[key] / best, 3) for key in ("whole_run", "first_to_last")},
        "rounds": rounds,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if given.write:
        given.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
