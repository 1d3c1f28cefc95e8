"""The file of API keys: ``NAME:SHA256HEX[:IMAGES_PER_SECOND]`` a line, read anew when it changes.

The file holds digests, so that reading it lets nobody in. A key is 256 random bits, which nobody finds by trying; a
slow hash, as passwords need it, would cost each request much and add nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.errors import RateLimitError
from app.metrics import Metrics
from tresnet.errors import UserError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class ApiKey:
    """One line of the file."""

    name: str
    digest: bytes
    images_per_s: float | None = None


def new_key() -> str:
    """A fresh key; its beginning lets scanners for leaked secrets find it."""
    return f"tresnet_{secrets.token_urlsafe(32)}"


def key_line(name: str, key: str, images_per_s: float | None = None) -> str:
    """The file's line for ``key``.

    Raises:
        UserError: for a name that does not fit, or a rate that is not above 0.
    """
    line = f"{name}:{_digest(key).hex()}" + ("" if images_per_s is None else f":{images_per_s:g}")
    _read_line(line)
    return line


def read_keys(path: Path) -> list[ApiKey]:
    """All keys of the file, or none of them. One name may have several keys: the old one and its successor.

    Raises:
        UserError: if the file cannot be read, or a line of it; the message repeats nothing of the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the API keys cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_keys(path, text)


def parse_keys(path: Path, text: str) -> list[ApiKey]:
    """The keys in ``text``, which is what ``path`` holds, or is to hold.

    Raises:
        UserError: as :func:`read_keys`.
    """
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                keys.append(_read_line(line.strip()))
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    if not keys:
        raise UserError(f"{path} holds no API key; `tresnet key NAME` makes one")
    rates: dict[str, float | None] = {}
    for key in keys:
        if rates.setdefault(key.name, key.images_per_s) != key.images_per_s:
            raise UserError(f"{path}: the keys of {key.name!r} have different rates: give all of them the same one")
    return keys


def _read_line(line: str) -> ApiKey:
    name, *rest = line.split(":")
    if not _NAME.fullmatch(name):
        raise UserError("a key's name is 1 to 64 letters, digits, '.', '_' or '-'")
    if not rest or len(rest) > 2 or not _DIGEST.fullmatch(rest[0]):
        raise UserError("a line must be NAME:SHA256HEX or NAME:SHA256HEX:IMAGES_PER_SECOND")
    rate = None
    if len(rest) == 2:
        with suppress(ValueError):
            rate = float(rest[1])
        if rate is None or not 0 < rate < float("inf"):
            raise UserError("the images per second of a key must be a number above 0")
    return ApiKey(name, bytes.fromhex(rest[0]), rate)


class ImageRate:
    """A token bucket that holds a second's worth of pictures and may go into debt.

    A request larger than the bucket is taken when the bucket is full and paid off afterwards, so that the rate holds
    for requests of any size.
    """

    def __init__(self, images_per_s: float) -> None:
        self.images_per_s = images_per_s
        self._size = max(1.0, images_per_s)
        self._tokens = self._size
        self._at = time.monotonic()

    def take(self, images: int) -> None:
        """Take the tokens of ``images`` pictures; for 0, see only whether one more would be taken.

        Raises:
            RateLimitError: if there are too few, with the time until there are enough.
        """
        now = time.monotonic()
        self._tokens = min(self._size, self._tokens + (now - self._at) * self.images_per_s)
        self._at = now
        lacking = min(max(1, images), self._size) - self._tokens
        if lacking > 0:
            raise RateLimitError(lacking / self.images_per_s)
        self._tokens -= images


class KeyRing:
    """The keys that let in now, none without a file.

    A file that broke changes nothing: the keys read before stay; the log and the metrics tell.
    """

    def __init__(self, path: Path | None, metrics: Metrics) -> None:
        self._path = path
        self._metrics = metrics
        self._keys: list[ApiKey] = []
        self._rates: dict[str, ImageRate] = {}
        self._seen: tuple[int, ...] | None = None
        self._loaded: tuple[int, ...] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the file for the first time, and watch it. Where it is broken then, no key is let in."""
        if self._path is not None:
            self._seen = self._stat(self._path)
            self._load(self._path)
            self._watch = asyncio.create_task(self._keep_watching(self._path))

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    def find(self, given: str) -> ApiKey | None:
        """The key that was given; takes as long whichever it is."""
        digest = _digest(given)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def take(self, name: str | None, images: int) -> None:
        """Count ``images`` against the rate of the key of that name; with 0, see only whether there is room.

        Raises:
            RateLimitError: if the key is over its rate.
        """
        if name is None:
            return
        if name in self._rates:
            self._rates[name].take(images)
        if images:
            self._metrics.key_images.labels(name).inc(images)

    async def _keep_watching(self, path: Path) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            seen = self._stat(path)
            # Read only when two looks saw the same: who writes slowly is given time to finish.
            if seen == self._seen != self._loaded:
                self._load(path)
            self._seen = seen

    @staticmethod
    def _stat(path: Path) -> tuple[int, ...]:
        """What changes with the file's content; a mounted Kubernetes secret changes its inode."""
        try:
            stat = path.stat()
        except OSError:
            return ()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _load(self, path: Path) -> None:
        self._loaded = self._seen
        try:
            keys = read_keys(path)
        except UserError as error:
            self._metrics.keys_reload_ok.set(0)
            logger.error("%s; the keys read before stay in force", error)
            return
        self._keys = keys
        self._rates = {key.name: self._rate(key.name, key.images_per_s) for key in keys if key.images_per_s}
        self._metrics.keys_reload_ok.set(1)
        self._metrics.keys.set(len(keys))
        logger.info("%d API keys in force: %s", len(keys), ", ".join(sorted({key.name for key in keys})))

    def _rate(self, name: str, images_per_s: float) -> ImageRate:
        """The rate as it stands, where it did not change: reading the file pays off no debt."""
        before = self._rates.get(name)
        return before if before is not None and before.images_per_s == images_per_s else ImageRate(images_per_s)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
