"""Folders that commands read pictures from, and write into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PICTURE_SUFFIXES = frozenset((".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
"""In lower case: which files of a folder are taken for pictures, where nobody names them one by one."""


def pictures_below(folder: Path) -> Iterator[Path]:
    """A folder's pictures and those of the folders in it, by name; nothing that hides behind a dot.

    A link to a folder is not followed, as it may lead back up; nor is what is no file taken for a picture, whatever it
    is called.

    Raises:
        OSError: if a folder cannot be read.
    """
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir(follow_symlinks=False):
            yield from pictures_below(Path(entry.path))
        elif Path(entry.name).suffix.lower() in PICTURE_SUFFIXES and _is_file(entry):
            yield Path(entry.path)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere counts as the picture that it was, which is then missed."""
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


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
