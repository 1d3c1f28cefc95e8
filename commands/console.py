"""Where commands speak to people: answers to stdout, the rest to stderr; user errors in one sentence, status 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from tresnet.errors import UserError

console = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False)


@contextmanager
def fails_with_2() -> Iterator[None]:
    """Turn :class:`UserError` and :class:`OSError` (missing files, full disks) into one sentence and exit status 2."""
    try:
        yield
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        return
    console.print(f"[red]error:[/red] {escape(message)}")
    raise typer.Exit(2)
