"""What goes to the gateway: pictures and parameters become requests, many pictures become batches."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, TypeGuard

from client.answers import Problem
from client.errors import ClientError

Picture: TypeAlias = bytes | str | os.PathLike[str]
"""A picture file's bytes, or the path where it lies."""
Content: TypeAlias = bytes | Problem
"""A picture's bytes, or why there are none."""
Parameters: TypeAlias = Mapping[str, object]

_MAX_BATCH_BYTES = 8 * 2**20
"""Of pictures in one request; the gateway's own bound is 32 MiB, unless its operator has set another."""


class _Common(TypedDict, total=False):
    model: str
    version: str
    embedding: bool
    explain: bool


class ClassifyParameters(_Common, total=False):
    """What ``classify`` takes."""

    top_k: int
    min_score: float


class TagParameters(_Common, total=False):
    """What ``tag`` takes."""

    threshold: float
    max_tags: int
    include_labels: list[str]
    exclude_labels: list[str]


@dataclass(frozen=True)
class Request:
    """One HTTP request; several pictures become the parts of a form."""

    method: Literal["GET", "POST"]
    path: str
    query: list[tuple[str, str | int | float | bool | None]]
    pictures: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Pictures that go in one request, and the place of the first among all."""

    first: int
    contents: list[Content]
    sources: list[str | None]
    """The path of each, or None for one that was given as bytes."""


def question(path: str, pictures: Iterable[bytes], parameters: Parameters) -> Request:
    return Request("POST", path, list(_query(parameters)), tuple(pictures))


def _query(parameters: Parameters) -> Iterator[tuple[str, str | int | float | bool | None]]:
    for name, value in parameters.items():
        if isinstance(value, bool):
            yield name, str(value).lower()
        elif isinstance(value, (list, tuple)):
            # A value that stands alone is split at its commas; one that is repeated is not.
            alone = len(value) == 1 and "," in value[0]
            # An empty list is sent, too: it asks for no label, and no parameter for every one.
            yield from ((name, str(entry)) for entry in (list(value) * 2 if alone else value or [""]))
        elif value is not None:
            yield name, str(value)


def is_one(pictures: object) -> TypeGuard[Picture]:
    """Whether this is a single picture, in any form that is taken."""
    return isinstance(pictures, (bytes, bytearray, memoryview, str, os.PathLike))


def read_picture(picture: object) -> tuple[Content, str | None]:
    """A picture's bytes, or why there are none; and its path, if it was given by one.

    Raises:
        TypeError: for what is no picture.
    """
    if not is_one(picture):
        raise TypeError(
            f"a picture is bytes or a path, as str or os.PathLike; this is of type {type(picture).__name__}"
        )
    if not isinstance(picture, (str, os.PathLike)):
        return bytes(picture), None
    source = os.fspath(picture)
    try:
        return _content(source), source
    except OSError as error:
        return Problem(0, "unreadable_file", f"{source}: {error.strerror or error}"), source


def _content(source: str | bytes) -> bytes:
    """What is in the file; an empty pipe that nobody writes to is not waited for, as no signal would end that."""

    def open_at_once(path: str | bytes, flags: int) -> int:
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

    with open(source, "rb", opener=open_at_once) as file:
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(file.fileno(), True)  # a pipe that somebody writes to is read to its end
        content = file.read()
        if not content and stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise OSError("a pipe that nobody writes to")
        return content


def one_batch(pictures: Picture | Sequence[Picture]) -> Batch:
    """All of them, for one request.

    Raises:
        ClientError: for a file that cannot be read.
        TypeError: for what is no picture.
    """
    several: Sequence[object] = [pictures] if is_one(pictures) or not isinstance(pictures, Sequence) else pictures
    read = [read_picture(picture) for picture in several]
    for content, _ in read:
        if isinstance(content, Problem):
            raise ClientError(content.detail)
    return Batch(0, [content for content, _ in read], [source for _, source in read])


def batches(pictures: Iterable[Picture], size: int) -> Iterator[Batch]:
    """Read and group pictures, ``size`` together at most; files are read only as they are asked for.

    Raises:
        TypeError: for a single picture, and for what is none.
    """
    if is_one(pictures):
        raise TypeError("several pictures are wanted here, in a list or any other iterable; this is a single one")
    held, batch = 0, Batch(0, [], [])
    for picture in pictures:
        content, source = read_picture(picture)
        weight = len(content) if isinstance(content, bytes) else 0
        if batch.contents and (len(batch.contents) >= size or held + weight > _MAX_BATCH_BYTES):
            yield batch
            held, batch = 0, Batch(batch.first + len(batch.contents), [], [])
        batch.contents.append(content)
        batch.sources.append(source)
        held += weight
    if batch.contents:
        yield batch
