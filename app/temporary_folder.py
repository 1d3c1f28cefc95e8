"""A folder in the temporary directory that lasts as long as the service, however long that is."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Locked while the context lasts: systemd-tmpfiles clears away what has lain there for ten days, unless it is."""
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(folder)
        finally:
            os.close(lock)
