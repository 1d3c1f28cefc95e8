"""How many pictures and bytes may be inside at once, and how long those refused should stay away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import OverloadError

_HALF_LIFE_S = 10.0
"""Of the memory of the drain rate: busy time that long ago counts half."""


class Admission:
    """Bounds on admitted pictures and on the bytes of bodies.

    ``Retry-After`` is the time until what is inside has left, at the rate measured while there was something inside.
    """

    def __init__(
        self, max_images: int, max_bytes: int, overload_status: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._overload_status = overload_status
        self._clock = clock
        self._images = 0
        self._bytes = 0
        self._left = 0.0  # pictures, and
        self._busy_s = 0.0  # the time in which they left, both forgetting
        self._measured_until = clock()

    def check(self) -> None:
        """Refuse a request before its body is read, if it could not be admitted.

        Raises:
            OverloadError: if not one more picture, or not one more byte, fits.
        """
        if self._images >= self._max_images or self._bytes >= self._max_bytes:
            raise self._refusal()

    @contextmanager
    def hold_bytes(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that counts bytes as they arrive; they count until the context is left.

        Its OverloadError says that they do not fit beside those of others; alone, any body fits.
        """
        held = 0

        def take(count: int) -> None:
            nonlocal held
            if self._bytes > held and self._bytes + count > self._max_bytes:
                raise self._refusal()
            self._bytes += count
            held += count

        try:
            yield take
        finally:
            self._bytes -= held

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold places for ``images`` pictures.

        Raises:
            OverloadError: if they do not fit now. A request larger than the whole bound fits an empty gateway.
        """
        if self._images and self._images + images > self._max_images:
            raise self._refusal()
        self._measure(0)
        self._images += images
        try:
            yield
        finally:
            self._measure(images)
            self._images -= images

    def retry_after_s(self) -> float:
        """Seconds until what is inside has left, at the measured rate; 1 to 60."""
        self._measure(0)
        if not self._left:
            return 5.0
        return min(60.0, max(1.0, self._images * self._busy_s / self._left))

    def _refusal(self) -> OverloadError:
        return OverloadError(self._overload_status, self.retry_after_s())

    def _measure(self, left: int) -> None:
        now = self._clock()
        if self._images:
            passed = now - self._measured_until
            kept = 0.5 ** (passed / _HALF_LIFE_S)
            self._busy_s = self._busy_s * kept + passed
            self._left = self._left * kept + left
        self._measured_until = now
