"""From what was typed to a list of pictures: files, folders, patterns, a list of paths, stdin."""

from __future__ import annotations

import glob
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from commands.console import console
from tresnet.errors import UserError
from tresnet.folders import pictures_below


@dataclass(frozen=True)
class NamedPicture:
    """A picture as it is called in the answer, and where it is."""

    name: str
    content: Path | bytes


def find_pictures(images: list[str], paths_from: str | None) -> list[NamedPicture]:
    """In the order given, a folder's by name; what is not there is kept, to fail alone beside the others.

    Raises:
        UserError: if there is no picture at all.
        OSError: if the list of paths cannot be read.
    """
    if images.count("-") + (paths_from == "-") > 1:
        raise UserError("stdin can be one picture or one list of paths, not both")
    listed = _listed(paths_from) if paths_from is not None else []
    found = [picture for word in images for picture in _named(word)]
    if not found and not listed:
        raise UserError(_no_picture(images, paths_from))
    if not listed and not any(isinstance(one.content, bytes) or one.content.exists() for one in found):
        raise UserError("; ".join(_missing(word) for word in images if not Path(word).is_dir()))
    # A path from a list is a path: one that is gone fails alone, when its turn comes.
    return found + [NamedPicture(line, Path(line)) for line in listed]


def _no_picture(images: list[str], paths_from: str | None) -> str:
    if images:
        return "no picture to ask about; a folder's are known by their suffix: .jpg, .png and so on"
    if paths_from is not None:
        return f"no picture: {'stdin' if paths_from == '-' else paths_from} lists none"
    return "no picture was named: give files or folders, or see --help"


def _missing(word: str) -> str:
    return f"{word}: " + ("no file matches" if glob.has_magic(word) else "no such file or folder")


def _listed(paths_from: str) -> list[str]:
    content = sys.stdin.buffer.read() if paths_from == "-" else Path(paths_from).read_bytes()
    # A file's name may hold whatever else ends a line, and bytes that are no text.
    return [line for end in content.split(b"\n") if (line := os.fsdecode(end.removesuffix(b"\r")))]


def _named(word: str) -> list[NamedPicture]:
    if word == "-":
        return [NamedPicture("-", sys.stdin.buffer.read())]
    path = Path(word)
    if path.is_dir():
        below = [NamedPicture(str(file), file) for file in pictures_below(path)]
        if not below:
            console.print(f"{escape(word)} holds no picture")
        return below
    is_pattern = glob.has_magic(word) and not path.exists()
    matches = sorted(glob.glob(word, recursive=True)) if is_pattern else []  # noqa: PTH207 (absolute ones, too)
    files = [
        file for match in matches for file in (pictures_below(Path(match)) if Path(match).is_dir() else [Path(match)])
    ]
    return [NamedPicture(str(file), file) for file in files or [path]]
