"""Folders that commands read pictures from, and write into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PICTURE_SUFFIXES = frozenset((".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
"""In lower case: which files of a folder are taken for pictures, where nobody names them one by one."""


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """``folder``, made if it is not there; gone again if what follows fails before anything is left in it."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # what is not empty cannot be removed
                folder.rmdir()
        raise
