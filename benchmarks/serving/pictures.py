"""The pictures that are sent: one real photograph (scikit-learn's ``china.jpg``), as JPEG files of several sizes."""

from __future__ import annotations

import io
from pathlib import Path

import sklearn
from PIL import Image

SIZES = {"photo": (500, 375), "12mp": (4000, 3000), "large": (800, 600)}


def write_picture(name: str, folder: Path) -> Path:
    """``folder/name.jpg`` in JPEG quality 90."""
    path = folder / f"{name}.jpg"
    if not path.exists():
        source = Image.open(Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg")
        buffer = io.BytesIO()
        source.resize(SIZES[name], Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return path
