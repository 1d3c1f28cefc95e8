"""Freed memory is kept for the next picture, instead of going to the kernel and coming back page by page.

What one picture takes, the next takes again. glibc's own limits gave it back each time: 320 page faults and 0.5 of
1.25 ms of CPU a picture in a decoding process. An operator's own ``MALLOC_`` variables are left as they are.
"""

from __future__ import annotations

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = 8 * 2**20, 16 * 2**20
PICTURES = {"MALLOC_MMAP_THRESHOLD_": str(_MMAP_THRESHOLD), "MALLOC_TRIM_THRESHOLD_": str(_TRIM_THRESHOLD)}
"""For the environment of a process that decodes: up to 16 MiB are kept, larger pieces than 8 MiB go back at once."""
ACTIVATIONS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""For one that runs models on a CPU: it keeps what its largest batch took."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Do in this process what :data:`PICTURES` does in another; without glibc, nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and PICTURES.keys().isdisjoint(os.environ):
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
