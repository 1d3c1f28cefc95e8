"""``tresnet models``: what a running gateway serves, or what a repository on disk holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from commands.ask import DEFAULT_URL, SOME_FAILED, UNREACHABLE, ApiKey, Url
from commands.console import console, fails_with_2, out
from tresnet.errors import UserError


def models(
    url: Url = DEFAULT_URL,
    repository: Annotated[
        Path | None, typer.Option(help="Read this model repository instead; needs no server.", metavar="DIR")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Whole contracts, an object for each version, a line each.")
    ] = False,
    api_key: ApiKey = None,
) -> None:
    """List the models that a gateway serves, or that lie in a repository, with what one must know to ask them."""
    faults: list[str] = []
    if repository is None:
        listed = _served(url, api_key)
    else:
        with fails_with_2():
            from commands.repository import read_repository

            found = read_repository(repository)
            if not found:
                raise UserError(f"{repository} holds no model; `tresnet export` puts one there")
        listed = [version.as_served() for version in found if version.fault is None]
        faults = [fault for version in found if (fault := version.told_fault())]
    if as_json:
        for model in listed:
            typer.echo(json.dumps(model))
    elif listed:
        out.print(_table(listed))
    elif not faults:
        console.print(f"the gateway at {escape(url)} serves no model")
    for fault in faults:
        console.print(f"[red]error:[/red] {escape(fault)}")
    if faults:
        raise typer.Exit(SOME_FAILED)


def _served(url: str, api_key: str | None) -> list[dict[str, Any]]:
    from client import Client, ClientError, Patience, UnavailableError, UnreachableError
    from commands.away import why_away

    try:
        with Client(url, api_key=api_key, patience=Patience(deadline_s=10, retry_for_s=1)) as gateway:
            return [dict(model.document) for model in gateway.models()]
    except (UnreachableError, UnavailableError) as error:
        message, status = why_away(url, error), UNREACHABLE
    except ClientError as error:
        message, status = f"{url}: {error}", 2
    console.print(f"[red]error:[/red] {escape(message)}")
    raise typer.Exit(status)


def _table(listed: list[dict[str, Any]]) -> Table:
    # A name is what one must type: it stays whole, and what is long beside it takes more lines.
    others = ("version", "task", "pixels", "labels", "architecture", "precision")
    name = Column("model", no_wrap=True, overflow="fold")
    table = Table(name, *(Column(heading, overflow="fold") for heading in others))
    for model in listed:
        facts, labels = model["facts"], model["labels"]
        shown = ", ".join(labels[:3]) + (", …" if len(labels) > 3 else "")
        table.add_row(
            escape(model["name"]), model["version"], model["task"], str(model["preprocessing"]["image_size"]),
            escape(f"{len(labels)}: {shown}"), facts["architecture"], facts["precision"],
        )  # fmt: skip
    return table
