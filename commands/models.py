"""``tresnet models``: what a running gateway serves, or what a repository on disk holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from commands.ask import DEFAULT_URL, SOME_FAILED, UNREACHABLE, ApiKey, Url
from commands.console import console, fails_with_2, out


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
        listed = [version.as_served() for version in found if version.fault is None]
        faults = [
            f"{version.model} {version.version}".strip() + f": {version.fault}" for version in found if version.fault
        ]
    if as_json:
        for model in listed:
            typer.echo(json.dumps(model))
    else:
        out.print(_table(listed))
    for fault in faults:
        console.print(f"[red]error:[/red] {escape(fault)}")
    if faults:
        raise typer.Exit(SOME_FAILED)


def _served(url: str, api_key: str | None) -> list[dict[str, Any]]:
    from client import Client, ClientError, Patience, UnavailableError, UnreachableError

    try:
        with Client(url, api_key=api_key, patience=Patience(deadline_s=10, retry_for_s=1)) as gateway:
            return [dict(model.document) for model in gateway.models()]
    except ClientError as error:
        console.print(f"[red]error:[/red] {escape(f'{url}: {error}')}; `tresnet serve` starts a gateway")
        away = isinstance(error, UnreachableError | UnavailableError)
        raise typer.Exit(UNREACHABLE if away else 2) from None


def _table(listed: list[dict[str, Any]]) -> Table:
    table = Table("model", "version", "task", "pixels", "labels", "architecture", "precision")
    for model in listed:
        facts, labels = model["facts"], model["labels"]
        shown = ", ".join(labels[:3]) + (", …" if len(labels) > 3 else "")
        table.add_row(
            escape(model["name"]), model["version"], model["task"], str(model["preprocessing"]["image_size"]),
            escape(f"{len(labels)}: {shown}"), facts["architecture"], facts["precision"],
        )  # fmt: skip
    return table
