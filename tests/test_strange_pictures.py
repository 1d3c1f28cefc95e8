"""Pictures of every kind, bombs, and damage of all sorts: served right or refused, quickly and within bounds."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import Server
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import png
from pictures_bombs import bombs
from pictures_corpus import SIDE, corpus, on_white, photo, small_files
from PIL import Image

from tresnet.picture import PictureError, Preprocessing, TooManyPixelsError, prepare

AS_IT_IS = Preprocessing(image_size=SIDE, resize_mode="squash")
SMALL = Preprocessing(image_size=32)
MAX_CPU_S = 2.0
MAX_GROWTH_MIB = 200


def test_every_picture_is_served_right_or_refused() -> None:
    assert [fault for name in corpus() if (fault := _fault(name))] == []


def _fault(name: str) -> str | None:
    case = corpus()[name]
    try:
        prepared = prepare(case.data, AS_IT_IS)
    except PictureError as error:
        code = "too_many_pixels" if isinstance(error, TooManyPixelsError) else "undecodable_image"
        return None if code == case.code else f"{name}: {error}"
    if case.pixels is None:
        return f"{name}: served"
    distance = np.abs(prepared.pixels - case.pixels.astype(float)).mean()
    return None if distance <= case.bound else f"{name}: {distance:.2f} levels off"


def test_bombs_cost_little() -> None:
    costly = []
    for name, data in bombs():
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        before, started = _status_mib("VmRSS"), time.process_time()
        try:
            assert prepare(data, SMALL).pixels.shape == (32, 32, 3)
        except PictureError as error:
            assert str(error)
        cpu_s, growth_mib = time.process_time() - started, _status_mib("VmHWM") - before
        if cpu_s > MAX_CPU_S or growth_mib > MAX_GROWTH_MIB:
            costly.append((name, cpu_s, growth_mib))
    assert costly == []


def _status_mib(key: str) -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{key}:")) / 1024


@pytest.mark.parametrize("crop_pct", [1.0, 0.7])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1500, 1100), (90, 2600), (70, 50)])
def test_transparent_pictures_equal_flattening_first(
    size: tuple[int, int], interpolation: str, crop_pct: float
) -> None:
    """Piece by piece gives what flattening and resizing the whole picture gives, but for the order of roundings."""
    image = Image.fromarray(np.dstack((photo(), photo()[::-1, :, 1]))).resize(size)
    rgba = np.asarray(image)
    how = Preprocessing(image_size=64, interpolation=interpolation, crop_pct=crop_pct)  # type: ignore[arg-type]
    prepared = prepare(png(rgba, 6), how)
    white = Image.new("RGBA", size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, Image.fromarray(rgba)).convert("RGB")
    buffer = io.BytesIO()
    flat.save(buffer, "PNG")
    assert np.abs(prepared.pixels.astype(int) - prepare(buffer.getvalue(), how).pixels).max() <= 2
    assert np.abs(np.asarray(flat) - on_white(rgba[..., :3], rgba[..., 3])).max() <= 1


def test_memory_is_bounded_for_whole_and_for_lying_pictures() -> None:
    """In a process whose memory is limited as a decoder's: the costliest kinds fit in, what hides its size does not."""
    pixels = 1024 * 1024
    script = f"""
import sys
from app.decode_process import _limit_memory
from tresnet.picture import Preprocessing, UndecodablePictureError, prepare
files = sys.stdin.buffer.read()
_limit_memory({pixels})
while files:
    size, files = int.from_bytes(files[:4]), files[4:]
    data, files = files[:size], files[size:]
    try:
        print("ok", prepare(data, Preprocessing(image_size=32), max_pixels={pixels}).width)
    except UndecodablePictureError as error:
        print("refused", error)
"""
    image = Image.fromarray(np.kron(photo()[:64, :64], np.ones((16, 16, 1), np.uint8)))
    image.putalpha(image.getchannel("R"))
    files = []
    for format_, options in (("WEBP", {"lossless": True, "method": 0, "quality": 0}), ("AVIF", {"speed": 10})):
        buffer = io.BytesIO()
        image.save(buffer, format_, **options)
        files.append(buffer.getvalue())
    buffer = io.BytesIO()
    Image.new("RGB", (11_000, 11_000)).save(buffer, "AVIF", speed=10, quality=10, subsampling="4:4:4")
    flat = buffer.getvalue()
    size = flat.index(b"ispe") + 8
    files[1:1] = [flat[:size] + struct.pack(">II", 1, 1) + flat[size + 8 :]]
    sent = b"".join(len(file).to_bytes(4) + file for file in files)
    done = subprocess.run([sys.executable, "-c", script], input=sent, capture_output=True, timeout=120, check=False)
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "refused", "ok"], done.stderr.decode()


def _mutations() -> st.SearchStrategy[bytes]:
    """A small file cut short, with bits turned, bytes written over, put in or taken out, or joined to another."""
    files = st.sampled_from(small_files())
    place = st.floats(0, 1, exclude_max=True)
    odd = st.sampled_from([b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80"])
    piece = st.one_of(odd, st.binary(min_size=1, max_size=8))

    def at(data: bytes, share: float) -> int:
        return int(share * len(data))

    def overwritten(data: bytes, edits: list[tuple[float, bytes]]) -> bytes:
        changed = bytearray(data)
        for share, new in edits:
            changed[at(data, share) : at(data, share) + len(new)] = new
        return bytes(changed)

    early = place.map(lambda share: share**4)  # headers are where decoders decide
    return st.one_of(
        st.builds(lambda data, share: data[: at(data, share)], files, place),
        st.builds(overwritten, files, st.lists(st.tuples(early | place, piece), min_size=1, max_size=4)),
        st.builds(
            lambda data, share, new: data[: at(data, share)] + new + data[at(data, share) :], files, early, piece
        ),
        st.builds(lambda a, b, x, y: a[: at(a, min(x, y))] + a[at(a, max(x, y)) :], files, files, place, place),
        st.builds(lambda a, b, x, y: a[: at(a, x)] + b[at(b, y) :], files, files, place, early),
    )


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(_mutations())
def test_damaged_pictures_raise_picture_errors_only(data: bytes) -> None:
    started = time.process_time()
    try:
        assert prepare(data, SMALL, max_pixels=4_000_000).pixels.shape == (32, 32, 3)
    except PictureError as error:
        assert str(error)
    assert time.process_time() - started < MAX_CPU_S


def test_strange_pictures_over_http(server: Server) -> None:
    """Every case of the corpus, and some with a bit turned: the status of the contract, never a 500, never silence."""
    rng = np.random.default_rng(5)
    cases = [(case.name, case.data, {200 if case.pixels is not None else 422}) for case in corpus().values()]
    for name, data, _ in cases[::4]:
        changed = bytearray(data)
        changed[int(len(data) * rng.random() ** 3)] ^= 1 << int(rng.integers(8))
        cases.append((f"{name}, a bit turned", bytes(changed), {200, 413, 422}))
    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda case: client.post(f"{server.url}/classify", content=case[1]), cases))
    wrong = [
        (name, answer.status_code, answer.text)
        for (name, _, expected), answer in zip(cases, answers, strict=True)
        if answer.status_code not in expected
    ]
    assert wrong == []


def test_every_truncation_of_a_small_file_is_refused_or_served() -> None:
    """Each format at very many lengths; what is served must be the picture's beginning, not an accident."""
    served = []
    for name in ("jpeg-420", "png-rgba", "webp", "gif", "bmp-24", "tiff-tiff_lzw", "avif", "jpeg-progressive"):
        data = corpus()[name].data
        for length in range(0, len(data) - 1, max(1, len(data) // 60)):
            try:
                prepare(data[:length], SMALL)
                served.append((name, length / len(data)))
            except PictureError:
                pass
    assert [(name, share) for name, share in served if share < 0.95] == []
