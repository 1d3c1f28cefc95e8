"""The words that every part shares, in a file that imports nothing heavy: a command's ``--help`` needs them, too."""

from __future__ import annotations

from typing import Literal

Task = Literal["classify", "tag"]
Precision = Literal["fp32", "fp16", "bf16"]
