"""Crop and resize in one pass, with SIMD where this processor has it.

The filters are Pillow's, widened when a picture shrinks, so that nothing is skipped. For ``bilinear``, a Rust library
that works on Pillow's own memory, fast_image_resize, is five times as fast as Pillow and one level of 255 away from
it at most, two for a pixel in millions (``tests/test_picture.py``). It comes as a wheel for x86-64 alone; elsewhere
Pillow does the work. So it does for ``bicubic``, whose overshoot the two clip in another order.
"""

from __future__ import annotations

from PIL import Image

from tresnet.terms import Interpolation

try:
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
except ImportError:
    HAS_SIMD = False
else:
    HAS_SIMD = True

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resample(image: Image.Image, size: int, box: Box, interpolation: Interpolation) -> Image.Image:
    """``box`` of a loaded picture of mode RGB or L, as ``size × size`` pixels of the same mode."""
    if HAS_SIMD and interpolation == "bilinear":
        return _bilinear(image, size, box)
    return image.resize((size, size), _PILLOW[interpolation], box=box)


def _bilinear(image: Image.Image, size: int, box: Box) -> Image.Image:
    left, top, right, bottom = box
    options = ResizeOptions(
        resize_alg=ResizeAlg.convolution(FilterType.bilinear), crop_box=CropBox(left, top, right - left, bottom - top)
    )
    result = Image.new(image.mode, (size, size))
    Resizer().resize_pil(image, result, options)  # one for each call: it keeps buffers, and threads may not share it
    return result
