"""The golden picture: one picture and its expected scores, which travel with the model and guard its going live."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from export.program import MappingProgram, ServingProgram
from tresnet.contract import GoldenPicture
from tresnet.picture import Preprocessing, prepare

_KEPT_SCORES = 16


@torch.inference_mode()
def golden_picture(eager: ServingProgram | MappingProgram, how: Preprocessing) -> GoldenPicture:
    """A PNG that is wider than high, so that resizing and cropping count, and the eager network's best scores."""
    png = _png()
    pixels = torch.from_numpy(prepare(png, how).pixels.copy())[None]  # [1, S, S, 3]
    scores = eager(pixels)[0][0]  # [C]
    best = scores.topk(min(_KEPT_SCORES, scores.numel()))
    return GoldenPicture(
        png_base64=base64.b64encode(png).decode(),
        scores={int(index): round(float(score), 6) for index, score in zip(best.indices, best.values, strict=True)},
    )


def _png(width: int = 96, height: int = 72) -> bytes:
    """A lossless picture with slopes, edges and all three colours, the same on every machine."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x // (width - 1)
    green = np.where((x // 12 + y // 12) % 2 == 0, 220, 40)
    blue = np.where((x - width // 2) ** 2 + (y - height // 2) ** 2 < (height // 3) ** 2, 240, 255 * y // (height - 1))
    buffer = io.BytesIO()
    Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
