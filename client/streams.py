"""What both clients' streams of pictures share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from client.answers import Problem
from client.errors import ClientError
from client.requests import Picture, read_picture


class Stop:
    """The first failure of a stream ends it: no further batch begins, and those under way end by themselves."""

    def __init__(self) -> None:
        self._failure: BaseException | None = None

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    @contextmanager
    def on_failure(self) -> Iterator[None]:
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except Exception as error:
            self._failure = self._failure or error
            raise

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def bytes_of(pictures: Picture | Sequence[Picture]) -> list[bytes]:
    """The bytes of one picture or several.

    Raises:
        ClientError: for a file that cannot be read.
    """
    given = [pictures] if not isinstance(pictures, Sequence) or isinstance(pictures, bytes) else pictures
    contents = [read_picture(picture) for picture in given]
    for content in contents:
        if isinstance(content, Problem):
            raise ClientError(content.detail)
    return [content for content in contents if isinstance(content, bytes)]
