"""Log records to lines: JSON objects for machines, or text for people. Ours, uvicorn's and warnings alike.

A record may bring ``fields``, a dictionary that becomes members of the JSON object; a request's line does.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import orjson

LogFormat = Literal["json", "text"]

_requests = logging.getLogger("tresnet.requests")
# Their lines at INFO repeat each request in other words, or name whole URLs, which may hold secrets.
_QUIET = ("httpx", "httpcore", "asyncio", "opentelemetry")


class JsonLines(logging.Formatter):
    """One JSON object a record: ``time, level, logger, message``, the record's fields, and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextLines(logging.Formatter):
    """For a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "fields", {})
        return super().format(record) + "".join(f" {name}={value}" for name, value in fields.items())


def configure_logging(form: LogFormat | None, level: str) -> None:
    """Send every record of this process to stderr; by default as text to a terminal and as JSON to anything else."""
    handler = logging.StreamHandler(sys.stderr)
    form = form or ("text" if sys.stderr.isatty() else "json")
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_request(level: int, fields: dict[str, object]) -> None:
    """The request's one line. Skips the search for the calling line, half of a record's cost."""
    if _requests.isEnabledFor(level):
        _requests.handle(
            _requests.makeRecord(_requests.name, level, "", 0, "request", (), None, extra={"fields": fields})
        )
