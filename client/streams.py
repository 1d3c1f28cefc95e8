"""What both clients' streams of pictures share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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
