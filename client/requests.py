"""What goes to the gateway: pictures and parameters become requests, many pictures become batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

from client.answers import Problem

Picture: TypeAlias = bytes | Path
"""A picture file's bytes, or where it lies."""
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


def question(path: str, pictures: Iterable[bytes], parameters: Parameters) -> Request:
    return Request("POST", path, list(_query(parameters)), tuple(pictures))


def _query(parameters: Parameters) -> Iterator[tuple[str, str | int | float | bool | None]]:
    for name, value in parameters.items():
        if isinstance(value, bool):
            yield name, str(value).lower()
        elif isinstance(value, (list, tuple)):
            # A value that stands alone is split at its commas; one that is repeated is not.
            alone = len(value) == 1 and "," in value[0]
            yield from ((name, str(entry)) for entry in (list(value) * 2 if alone else value))
        elif value is not None:
            yield name, str(value)


def read_picture(picture: Picture) -> Content:
    if isinstance(picture, bytes):
        return picture
    try:
        return picture.read_bytes()
    except OSError as error:
        return Problem(0, "unreadable_file", f"{picture}: {error.strerror or error}")


def batches(pictures: Iterable[Picture], size: int) -> Iterator[Batch]:
    """Read and group pictures, ``size`` together at most; files are read only as they are asked for."""
    first, held, contents = 0, 0, list[Content]()
    for picture in pictures:
        content = read_picture(picture)
        weight = len(content) if isinstance(content, bytes) else 0
        if contents and (len(contents) >= size or held + weight > _MAX_BATCH_BYTES):
            yield Batch(first, contents)
            first, held, contents = first + len(contents), 0, []
        contents.append(content)
        held += weight
    if contents:
        yield Batch(first, contents)
