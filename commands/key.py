"""``tresnet key``: a new API key, and its line for the gateway's file of keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.console import console, fails_with_2


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; seen in logs and metrics.")],
    images_per_second: Annotated[
        float | None, typer.Option(help="How many pictures a second it may ask about; no bound by default.")
    ] = None,
    add_to: Annotated[Path | None, typer.Option(help="Add the line to this file.", metavar="FILE")] = None,
) -> None:
    """Make an API key. It is printed this once: the file keeps its digest alone.

    Prints the key, and its line for the file TRESNET_API_KEYS_FILE unless it is added there.
    """
    with fails_with_2():
        from app.keys import key_line, new_key

        made = new_key()
        line = key_line(name, made, images_per_second)
        if add_to is not None:
            _append(add_to, line)
        console.print("The key, for the caller; it cannot be shown again:")
        typer.echo(made)
        if add_to is None:
            console.print("The line for the file of API keys:")
            typer.echo(line)


def _append(path: Path, line: str) -> None:
    """The file whole with the line, or as it was: a running gateway may read it at any moment.

    Raises:
        UserError: if the gateway would not take the file so.
    """
    from app.keys import parse_keys

    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    after = f"{before}{line}\n"
    parse_keys(path, after)
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(after, encoding="utf-8")
    aside.chmod(path.stat().st_mode if path.exists() else 0o640)
    aside.replace(path)
