"""The words that every part shares, in a file that imports nothing heavy: a command's ``--help`` needs them, too."""

from __future__ import annotations

from typing import Literal, get_args

Task = Literal["classify", "tag"]
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Arch = Literal["tresnet_m", "tresnet_l", "tresnet_xl", "tresnet_v2_l", "tresnet_s", "tresnet_v2_xl"]
"""The keys of ``VARIANTS`` in :mod:`tresnet.model`."""
Norm = Literal["auto", "package", "own", "bn"]
"""The norm layers; :mod:`tresnet.inplace_abn` says what each is."""
ProgramFormat = Literal["torchscript", "torch_aoti"]
"""The serving program's; :mod:`export.program_file` says what each is."""
Interpolation = Literal["bilinear", "bicubic"]
ResizeMode = Literal["crop", "squash"]
SMALLEST_SIDE = 20
"""The smallest picture side, in pixels, that runs: reflect padding needs two pixels in the last stage."""
