"""``tresnet doctor``: what this machine has of what the product needs, and how to mend the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from commands.ask import ApiKey
from commands.console import out

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    repository: Annotated[
        Path | None, typer.Option(help="The model repository to look at. Default: model_repository.", metavar="DIR")
    ] = None,
    port: Annotated[int | None, typer.Option(help="The port to serve on. Default: 8080.", min=0, max=65535)] = None,
    url: Annotated[str | None, typer.Option(envvar="TRESNET_URL", help="Also ask this running gateway.")] = None,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
) -> None:
    """Check Python, tools, the bundled Triton, GPU, memory, port, settings and models, and say how to mend what fails.

    Exit status 1 if something needed to serve is missing; what is only needed for more is a warning.
    """
    from commands.checks import Subject, run_checks

    findings = run_checks(Subject(repository, port, url, api_key))
    if as_json:
        typer.echo(json.dumps([finding.as_plain() for finding in findings], indent=1))
    else:
        table = Table("check", "state", Column("found", overflow="fold"))
        for finding in findings:
            mend = f"\n[bold]→ {escape(finding.remedy)}[/bold]" if finding.remedy else ""
            style = _STYLES[finding.state]
            table.add_row(finding.check, f"[{style}]{finding.state}[/{style}]", escape(finding.found) + mend)
        out.print(table)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)
