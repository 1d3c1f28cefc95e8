"""From a picture's bytes to the pixels a network sees. One function, used by training and the gateway alike.

Enters: the bytes of a picture in any of :data:`FORMATS`. Leaves: ``uint8 [S, S, 3]`` RGB, resized and cropped
as :class:`Preprocessing` says. Nothing numeric (scaling, mean, std) happens here: that is inside the program.

Cropping and resizing are one pass over the source, large JPEGs are decoded at a reduced DCT scale, and EXIF
orientation is applied to the small result; ``tests/test_picture.py`` bounds the distance to the plain way
(full decode, rotate, resize the shorter side, centre crop).
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from pydantic import BaseModel, ConfigDict, Field

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
DEFAULT_MAX_PIXELS = 64_000_000
_REDUCING_GAP = 2.0
"""Cheap reductions (DCT scaling, box filter) stop at twice the wanted size, so the last filter decides the look."""

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Our own bound on pixels is checked before anything is decoded; Pillow's would only add a warning.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # load the decoders once, here, rather than in whichever thread is first
if missing := [name for name in FORMATS if name not in Image.OPEN]:
    raise ImportError(f"this build of Pillow cannot read {', '.join(missing)}")


class PictureError(ValueError):
    """The bytes cannot be used as a picture; the message may be shown to whoever sent them."""


class UndecodablePictureError(PictureError):
    """Not a picture, a kind that is not accepted, or a damaged file."""


class TooManyPixelsError(PictureError):
    """A picture larger than the bound; found from its header alone, before any pixel is decoded."""


class Preprocessing(BaseModel):
    """How a picture becomes ``[image_size, image_size, 3]``.

    ``crop``: the shorter side to ``image_size / crop_pct``, then the centre. ``squash``: both sides to
    ``image_size``, aspect ratio ignored, ``crop_pct`` unused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(ge=20, le=4096, multiple_of=4)
    crop_pct: float = Field(default=1.0, gt=0.0, le=1.0)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    resize_mode: Literal["crop", "squash"] = "crop"

    def source_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a ``width × height`` picture that becomes the result: left, top, right, bottom."""
        if self.resize_mode == "squash":
            return (0.0, 0.0, float(width), float(height))
        shorter = math.floor(self.image_size / self.crop_pct)
        scale = shorter / min(width, height)
        resized_width = shorter if width <= height else int(scale * width)
        resized_height = shorter if height <= width else int(scale * height)
        left = round((resized_width - self.image_size) / 2)
        top = round((resized_height - self.image_size) / 2)
        x, y = width / resized_width, height / resized_height
        return (left * x, top * y, (left + self.image_size) * x, (top + self.image_size) * y)


@dataclass(frozen=True)
class PreparedPicture:
    """``pixels``: ``uint8 [S, S, 3]`` RGB. ``width``, ``height``: the upright source's, in pixels."""

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


def prepare(data: bytes, how: Preprocessing, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> PreparedPicture:
    """Decode ``data`` and resize it as ``how`` says. Thread-safe; drops the GIL while decoding and resizing.

    Raises:
        UndecodablePictureError: for bytes that are not a whole picture of an accepted kind.
        TooManyPixelsError: for a picture of more than ``max_pixels``, before it is decoded.
    """
    image = _open(data, max_pixels)
    try:
        orientation = _orientation(image)
        width, height = image.size
        small = _resize(image, how, orientation)
    except Exception as error:
        # Whatever a decoder raises on hostile bytes (there are over a dozen kinds), the picture is at fault.
        reason = str(error) or type(error).__name__
        raise UndecodablePictureError(f"the picture is damaged or cut short: {reason}") from error
    if orientation in _TRANSPOSES:
        small = small.transpose(_TRANSPOSES[orientation])
        if orientation >= 5:
            width, height = height, width
    return PreparedPicture(np.asarray(small), width, height)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise UndecodablePictureError(
            "the bytes are not a picture that can be read; send a whole JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file"
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise TooManyPixelsError(f"the picture has {width}x{height} pixels; at most {max_pixels:,} are accepted")
    if width < 1 or height < 1:
        raise UndecodablePictureError(f"the picture is empty: {width}x{height} pixels")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none or the EXIF block is damaged."""
    if image.format not in ("JPEG", "MPO", "TIFF", "WEBP", "PNG", "AVIF"):
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block: the pixels may still be whole
        return 1
    return value if value in _TRANSPOSES else 1


def _stored_box(width: int, height: int, how: Preprocessing, orientation: int) -> tuple[float, float, float, float]:
    """The source box of the upright picture, in the coordinates of the ``width x height`` that the file stores."""
    if orientation >= 5:
        top, left, bottom, right = how.source_box(height, width)
    else:
        left, top, right, bottom = how.source_box(width, height)
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (left, top, right, bottom)


def _resize(image: Image.Image, how: Preprocessing, orientation: int) -> Image.Image:
    full_width, full_height = image.size
    left, top, right, bottom = _stored_box(full_width, full_height, how, orientation)
    size = how.image_size

    # JPEG: let the decoder scale by 1/2, 1/4 or 1/8, as long as the box keeps twice the wanted size.
    wanted = (
        math.ceil(_REDUCING_GAP * size * full_width / (right - left)),
        math.ceil(_REDUCING_GAP * size * full_height / (bottom - top)),
    )
    image.draft(None, wanted)  # type: ignore[arg-type]  # None keeps the mode; a no-op for other formats
    x, y = image.width / full_width, image.height / full_height
    box = (max(0.0, left * x), max(0.0, top * y), min(right * x, image.width), min(bottom * y, image.height))

    plain = _without_alpha_or_palette(image)
    resized = plain.resize((size, size), _INTERPOLATIONS[how.interpolation], box=box, reducing_gap=_REDUCING_GAP)
    return resized.convert("RGB")


def _without_alpha_or_palette(image: Image.Image) -> Image.Image:
    """A picture that can be resized channel by channel; what is transparent shows white."""
    if image.mode in ("RGB", "L", "CMYK", "YCbCr") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image.load()
        values = np.asarray(image).astype(np.float32)
        if image.mode != "F":  # 16 bits a sample, as PNG and TIFF have them
            values = values / 257.0
        return Image.fromarray(np.clip(np.nan_to_num(values), 0, 255).round().astype(np.uint8))
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")
