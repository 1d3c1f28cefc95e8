"""Bytes to pixels, against the plain way and hostile bytes."""

from __future__ import annotations

import io
import platform

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from tresnet.picture import PictureError, Preprocessing, TooManyPixelsError, prepare
from tresnet.resample import HAS_SIMD, resample


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


def plainly(data: bytes, how: Preprocessing) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    size = how.image_size
    if how.resize_mode == "squash":
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    shorter = int(size / how.crop_pct)
    scale = shorter / min(image.size)
    image = image.resize((int(image.width * scale + 1e-9), int(image.height * scale + 1e-9)), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("mode", ["crop", "squash"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 4])
def test_close_to_the_plain_way(mode: str, orientation: int, scale: int) -> None:
    photo = Image.fromarray(load_sample_image("china.jpg"))
    data = jpeg(photo.resize((photo.width * scale, photo.height * scale)), orientation)
    how = Preprocessing(image_size=224, crop_pct=0.875, resize_mode=mode)  # type: ignore[arg-type]
    prepared = prepare(data, how)
    distance = np.abs(prepared.pixels.astype(int) - plainly(data, how).astype(int))
    assert distance.mean() < 1.5
    turned = orientation >= 5
    assert (prepared.width, prepared.height) == (
        (photo.height * scale, photo.width * scale) if turned else (photo.width * scale, photo.height * scale)
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_simd_and_pillow_agree(source: st.DataObject) -> None:
    """Within one level but for the rare pixel, for boxes anywhere and of any size, shrunk or enlarged."""
    width, height = source.draw(st.integers(1, 400)), source.draw(st.integers(1, 400))
    mode = source.draw(st.sampled_from(["RGB", "L"]))
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    left, top = source.draw(st.floats(0, width * 0.9)), source.draw(st.floats(0, height * 0.9))
    right, bottom = source.draw(st.floats(left + 0.5, width + 0.5)), source.draw(st.floats(top + 0.5, height + 0.5))
    box = (left, top, min(right, width), min(bottom, height))
    if box[2] - left < 0.01 or box[3] - top < 0.01:
        return
    size = source.draw(st.integers(20, 300))
    expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box)).astype(int)
    assert HAS_SIMD or platform.machine() != "x86_64"
    got = np.asarray(resample(image, size, box, "bilinear")).astype(int)
    distance = np.abs(got - expected)
    assert distance.max() <= 2  # each of the two passes rounds
    assert (distance > 1).mean() < 1e-4


def test_transparent_is_white() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(buffer, "PNG")
    assert (prepare(buffer.getvalue(), Preprocessing(image_size=32)).pixels == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_mode(mode: str) -> None:
    buffer = io.BytesIO()
    image = Image.new("L", (50, 30), 255)
    image = Image.new("I;16", (50, 30), 65535) if mode == "I;16" else image.convert(mode)
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    assert (prepare(buffer.getvalue(), Preprocessing(image_size=32)).pixels == 255).all()


def test_pixels_are_bounded_before_decoding() -> None:
    buffer = io.BytesIO()
    Image.new("1", (3000, 3000)).save(buffer, "PNG")
    with pytest.raises(TooManyPixelsError, match="3000 × 3000"):
        prepare(buffer.getvalue(), Preprocessing(image_size=32), max_pixels=1_000_000)


WHOLE = jpeg(Image.fromarray(load_sample_image("flower.jpg")).resize((64, 48)))


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.integers(0, len(WHOLE)).map(lambda n: WHOLE[:n]), st.data()))
def test_hostile_bytes_raise_picture_errors_only(case: object) -> None:
    data = case if isinstance(case, bytes) else _damage(case)
    try:
        assert prepare(data, Preprocessing(image_size=32)).pixels.shape == (32, 32, 3)
    except PictureError as error:
        assert str(error)


def _damage(source: st.DataObject) -> bytes:
    place = source.draw(st.integers(0, len(WHOLE) - 1))
    return WHOLE[:place] + source.draw(st.binary(min_size=1, max_size=8)) + WHOLE[place + 1 :]
