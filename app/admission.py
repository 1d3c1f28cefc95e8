"""How many pictures may be inside at once, and how long those refused should stay away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import OverloadError


class Admission:
    """A bound on admitted pictures; ``Retry-After`` comes from the measured rate at which they leave."""

    def __init__(self, max_images: int, overload_status: int) -> None:
        self._max_images = max_images
        self._overload_status = overload_status
        self._inside = 0
        self._rate = 0.0  # pictures a second, smoothed
        self._left = 0
        self._since = time.monotonic()

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold places for ``images`` pictures.

        Raises:
            OverloadError: if they do not fit now. A request larger than the whole bound fits an empty gateway.
        """
        if self._inside and self._inside + images > self._max_images:
            raise OverloadError(self._overload_status, self.retry_after_s())
        self._inside += images
        try:
            yield
        finally:
            self._inside -= images
            self._left += images

    def retry_after_s(self) -> float:
        """Seconds until what is inside has left, at the measured rate; 1 to 60."""
        elapsed = time.monotonic() - self._since
        if elapsed >= 1.0:
            fresh = self._left / elapsed
            self._rate = fresh if self._rate == 0 else 0.5 * self._rate + 0.5 * fresh
            self._left, self._since = 0, time.monotonic()
        rate = self._rate or self._left / max(elapsed, 0.1)
        return min(60.0, max(1.0, self._inside / rate)) if rate else 5.0
