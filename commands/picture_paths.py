"""From what was typed to a list of pictures: files, folders, patterns, a list of paths, stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tresnet.errors import UserError

PICTURE_SUFFIXES = frozenset((".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
"""Which files of a folder are taken; a file that is named itself is asked about whatever its name."""


@dataclass(frozen=True)
class NamedPicture:
    """A picture as it is called in the answer, and where it is."""

    name: str
    content: Path | bytes


def find_pictures(images: list[str], paths_from: str | None) -> list[NamedPicture]:
    """In the order given, a folder's by name.

    Raises:
        UserError: if something named is not there, or there is no picture at all.
        OSError: if the list of paths cannot be read.
    """
    if images.count("-") + (paths_from == "-") > 1:
        raise UserError("stdin can be one picture or one list of paths, not both")
    listed = _listed(paths_from) if paths_from is not None else []
    found: list[NamedPicture] = []
    for word in images:
        found += [NamedPicture("-", sys.stdin.buffer.read())] if word == "-" else _named(word)
    # A path from a list is a path: one that is gone fails alone, when its turn comes.
    found += [NamedPicture(line, Path(line)) for line in listed]
    if not found:
        raise UserError("no picture: " + ("none was named" if not images and not listed else "the folders hold none"))
    return found


def _listed(paths_from: str) -> list[str]:
    content = sys.stdin.buffer.read() if paths_from == "-" else Path(paths_from).read_bytes()
    # A file's name may hold whatever else ends a line, and bytes that are no text.
    return [line for end in content.split(b"\n") if (line := os.fsdecode(end.removesuffix(b"\r")))]


def _named(word: str) -> list[NamedPicture]:
    path = Path(word)
    if path.is_dir():
        return [NamedPicture(str(file), file) for file in _below(path)]
    if path.exists():
        return [NamedPicture(word, path)]
    matches = sorted(glob.glob(word, recursive=True)) if glob.has_magic(word) else []  # noqa: PTH207 (absolute ones, too)
    if not matches:
        raise UserError(f"{word}: no such file or folder")
    return [picture for match in matches for picture in _named(match)]


def _below(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if not entry.is_symlink():  # it may lead back up
                yield from _below(entry)
        elif entry.suffix.lower() in PICTURE_SUFFIXES:
            yield entry
