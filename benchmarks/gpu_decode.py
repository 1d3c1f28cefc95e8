"""What decoding costs: a core's rate with the gateway's own function, and the GPU's with nvJPEG, if it can be had."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.progress import first_line
from benchmarks.timing import median_seconds
from tresnet.picture import Preprocessing, prepare


def decode_on_cpu(picture: bytes, how: Preprocessing, *, seconds: float) -> dict[str, float]:
    """Decoding, cropping and resizing in this one thread, as the gateway's decoding processes do it."""
    taken = median_seconds(lambda: prepare(picture, how), torch.device("cpu"), seconds=seconds)
    return {"ms_per_image": round(1e3 * taken, 3), "images_per_s_and_core": round(1 / taken, 1)}


def decode_on_gpu(
    picture: bytes, image_size: int, device: torch.device, *, batch_size: int, seconds: float
) -> dict[str, Any]:
    """The same by nvJPEG through torchvision, resized on the GPU; or why it was not measured."""
    if device.type != "cuda":
        return {"skipped": "nvJPEG needs CUDA"}
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another build than torch's
        return {"skipped": f"torchvision's nvJPEG is not to be had: {error}"}
    encoded = [torch.frombuffer(bytearray(picture), dtype=torch.uint8)] * batch_size

    def decode() -> Tensor:
        decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
        shape = (image_size, image_size)
        resized = [F.interpolate(one[None].float(), shape, mode="bilinear", antialias=True) for one in decoded]
        return torch.cat(resized)

    try:
        taken = median_seconds(decode, device, seconds=seconds)
    except RuntimeError as error:  # without nvJPEG, of a driver that does not fit it, of memory: as it says
        return {"skipped": f"decoding by torchvision's nvJPEG failed: {first_line(error)}"}
    return {"images_per_s": round(batch_size / taken, 1), "batch": batch_size}
