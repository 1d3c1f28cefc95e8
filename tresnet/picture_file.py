"""A picture file as its decoder gets it, and the error of one that no decoder gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


class ContainerError(ValueError):
    """The file is of no accepted format, or too damaged or too odd to be given to a decoder."""


@dataclass(frozen=True)
class PictureFile:
    """``data``: what the decoder of ``format`` gets. ``orientation``: EXIF's 1..8, of the pixels in ``data``.

    ``allocated_pixels``: what the decoder allocates before it tells the picture's size; 0 where it tells first.
    """

    format: Format
    data: bytes
    orientation: int = 1
    allocated_pixels: int = 0
