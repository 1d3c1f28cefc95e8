"""What the peers share: how their users would prepare a picture and read the scores, and the program to serve.

Environment: ``MODEL`` the TorchScript file, ``IMAGE_SIZE`` in pixels, ``MAX_BATCH_SIZE``.
"""

from __future__ import annotations

import base64
import io
import os
import warnings

import numpy as np
import torch
from PIL import Image

IMAGE_SIZE = int(os.environ.get("IMAGE_SIZE", "224"))
MAX_BATCH_SIZE = int(os.environ.get("MAX_BATCH_SIZE", "8"))


def load_program():
    """The TorchScript program: ``uint8 [N, S, S, 3]`` to scores and embeddings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(os.environ["MODEL"]).eval()


def prepare(data: bytes) -> np.ndarray:
    """Resize the shorter side, centre crop: the transform of every tutorial, in Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return prepare_image(image)


def prepare_image(image: Image.Image) -> np.ndarray:
    shorter = int(IMAGE_SIZE / 0.875)
    scale = shorter / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - IMAGE_SIZE) // 2, (image.height - IMAGE_SIZE) // 2
    return np.asarray(image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))


def prepare_encoded(images: list[dict]) -> list[np.ndarray]:
    """The pictures of a JSON body, ``[{"b64": …}, …]``."""
    return [prepare(base64.b64decode(image["b64"])) for image in images]


def run(program, pictures: list[np.ndarray]) -> list[dict]:
    """One batch through the program; the best five labels of each picture."""
    with torch.inference_mode():
        scores, _ = program(torch.from_numpy(np.stack(pictures)))
        values, indices = scores.topk(5)
    return [
        {"predictions": [{"label": f"class_{i}", "label_id": i, "score": s} for s, i in zip(row, own, strict=True)]}
        for row, own in zip(values.tolist(), indices.tolist(), strict=True)
    ]
