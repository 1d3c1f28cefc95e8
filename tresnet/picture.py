"""From a picture's bytes to the pixels a network sees. One function, used by training and the gateway alike.

Enters: the bytes of a picture in any format of :mod:`tresnet.containers`. Leaves: ``uint8 [S, S, 3]`` RGB, resized and
cropped as :class:`Preprocessing` says. Nothing numeric (scaling, mean, std) happens here: that is inside the program.

Cropping and resizing are one pass over the source, large JPEGs are decoded at a reduced DCT scale, and EXIF
orientation is applied to the small result; ``tests/test_picture.py`` bounds the distance to the plain way
(full decode, rotate, resize the shorter side, centre crop).
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The decoders that there are; importing a plugin registers it with Pillow, and no other is asked.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tresnet.containers import read_container
from tresnet.errors import UserError
from tresnet.picture_file import ContainerError, PictureFile
from tresnet.resample import Box, resample
from tresnet.terms import SMALLEST_SIDE, Interpolation, ResizeMode

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
_FILTER_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Half the filter's width, in pixels of the coarser of source and result."""
_TILE = 1024
"""Side of the pieces in which odd kinds of pixels become RGB, so that no second whole picture is held."""
_SMALL_TILE_PIXELS = 2**22
"""What a decoder may always allocate, even where the operator's bound is smaller: tiles may exceed their picture."""

_PLUGINS = {
    "JPEG": JpegImagePlugin, "PNG": PngImagePlugin, "WEBP": WebPImagePlugin, "GIF": GifImagePlugin,
    "BMP": BmpImagePlugin, "TIFF": TiffImagePlugin, "AVIF": AvifImagePlugin,
}  # fmt: skip
if missing := [name for name in _PLUGINS if name not in Image.OPEN]:
    raise ImportError(f"this build of Pillow cannot read {', '.join(missing)}")
# Our own bound on pixels is checked before anything is decoded; Pillow's would only add a warning.
Image.MAX_IMAGE_PIXELS = None
ImageFile.LOAD_TRUNCATED_IMAGES = False  # half a picture is none
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # pictures are decoded side by side already
# Pillow warns about odd files; whoever sent one is answered, and the log is for the operator.
warnings.filterwarnings("ignore", module=r"PIL\.")


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

    image_size: int = Field(ge=SMALLEST_SIDE, le=4096, multiple_of=4)
    crop_pct: float = Field(default=1.0, gt=0.0, le=1.0)
    interpolation: Interpolation = "bilinear"
    resize_mode: ResizeMode = "crop"

    def changed(self, **wishes: object) -> Preprocessing:
        """The same but for the fields in ``wishes``; those that are None stay as they are.

        Raises:
            UserError: naming the field whose wish cannot be.
        """
        given = {name: wish for name, wish in wishes.items() if wish is not None}
        try:
            return self.model_validate(self.model_dump() | given)
        except ValidationError as error:
            fault = error.errors()[0]
            name = str(fault["loc"][0]).replace("_", " ")
            raise UserError(f"the {name} cannot be {fault['input']}: {fault['msg']}") from error

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
    image, orientation = _open(data, max_pixels)
    width, height = image.size
    try:
        small = _resize(image, how, orientation)
    except UndecodablePictureError:
        raise
    except Exception as error:
        # Whatever a decoder raises on hostile bytes (there are over a dozen kinds), the picture is at fault.
        reason = str(error) or type(error).__name__
        raise UndecodablePictureError(f"the picture is damaged or cut short: {reason}") from error
    if orientation in _TRANSPOSES:
        small = small.transpose(_TRANSPOSES[orientation])
        if orientation >= 5:
            width, height = height, width
    return PreparedPicture(np.asarray(small), width, height)


def _open(data: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    """The picture, not yet decoded, and its EXIF orientation."""
    try:
        file = read_container(data)
        if file.allocated_pixels > max(max_pixels, _SMALL_TILE_PIXELS):
            raise TooManyPixelsError(
                f"the picture makes room for {file.allocated_pixels:,} pixels; at most {max_pixels:,} are accepted"
            )
        image = Image.open(io.BytesIO(file.data), formats=[file.format])
    except PictureError:
        raise
    except ContainerError as error:
        raise UndecodablePictureError(str(error)) from error
    except Exception as error:
        raise UndecodablePictureError("the picture is damaged or cut short: its header cannot be read") from error
    width, height = image.size
    if width * height > max_pixels:
        raise TooManyPixelsError(f"the picture has {width} × {height} pixels; at most {max_pixels:,} are accepted")
    if width < 1 or height < 1:
        raise UndecodablePictureError(f"the picture is empty: {width} × {height} pixels")
    if image.mode in ("I", "F"):
        raise UndecodablePictureError("the picture has samples of 32 bits or signed ones, which have no agreed range")
    return image, _orientation(image, file)


def _orientation(image: Image.Image, file: PictureFile) -> int:
    """1..8; AVIF's is in its own boxes, which Pillow gives as EXIF."""
    if file.format != "AVIF":
        return file.orientation
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in _TRANSPOSES else 1


def _stored_box(width: int, height: int, how: Preprocessing, orientation: int) -> Box:
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
    if getattr(image, "quantization", None):  # a lossless JPEG has none, and its decoder does not scale
        image.draft(None, wanted)  # type: ignore[arg-type]  # None keeps the mode
    x, y = image.width / full_width, image.height / full_height
    box = (max(0.0, left * x), max(0.0, top * y), min(right * x, image.width), min(bottom * y, image.height))

    image.load()
    is_plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    if is_plain and _factors(box, size) == (1, 1):
        return resample(image, size, box, how.interpolation).convert("RGB")
    reduced, box = _reduced_rgb(image, size, box, _FILTER_SUPPORT[how.interpolation])
    return resample(reduced, size, box, how.interpolation)


def _factors(box: Box, size: int) -> tuple[int, int]:
    """Whole factors, across and down, by which a box filter may shrink ``box`` before the last filter does the rest."""
    left, top, right, bottom = box
    across, down = (max(1, int(side / size / _REDUCING_GAP)) for side in (right - left, bottom - top))
    return across, down


def _reduced_rgb(image: Image.Image, size: int, box: Box, filter_support: float) -> tuple[Image.Image, Box]:
    """From any kind of pixels, piece by piece: made opaque RGB, reduced by :func:`_factors`; and the box in it."""
    scales = ((box[2] - box[0]) / size, (box[3] - box[1]) / size)
    factor_x, factor_y = _factors(box, size)
    margin_x, margin_y = ((filter_support - 0.5) * scale if scale > 1 else filter_support for scale in scales)
    left, top = max(0, int(box[0] - margin_x)), max(0, int(box[1] - margin_y))
    right, bottom = min(image.width, math.ceil(box[2] + margin_x)), min(image.height, math.ceil(box[3] + margin_y))
    reduced = Image.new("RGB", (math.ceil((right - left) / factor_x), math.ceil((bottom - top) / factor_y)))
    step_x, step_y = (max(factor, _TILE // factor * factor) for factor in (factor_x, factor_y))
    for y in range(top, bottom, step_y):
        for x in range(left, right, step_x):
            piece = image.crop((x, y, min(x + step_x, right), min(y + step_y, bottom)))
            piece = _opaque_rgb(piece).reduce((factor_x, factor_y))
            reduced.paste(piece, ((x - left) // factor_x, (y - top) // factor_y))
    return reduced, (
        (box[0] - left) / factor_x, (box[1] - top) / factor_y,
        (box[2] - left) / factor_x, (box[3] - top) / factor_y,
    )  # fmt: skip


def _opaque_rgb(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white. Colour profiles are not applied: networks are trained without."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        if key is not None:
            values[values == key] = 65535
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if key is None and image.mode not in ("LA", "PA", "La", "RGBA", "RGBa"):
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")
