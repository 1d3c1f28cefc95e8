"""The console script ``tresnet``: each command imports its own station only when it runs."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from commands.ask import EXIT_STATUS, classify, tag
from commands.bench import bench
from commands.doctor import doctor
from commands.eval import evaluate
from commands.export import export
from commands.key import key
from commands.models import models
from commands.serve import serve
from commands.train import train


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"tresnet {metadata.version('tresnet-serving')}")
        raise typer.Exit


app = typer.Typer(
    name="tresnet",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command("eval")(evaluate)
app.command()(export)
app.command()(serve)
app.command()(key)
app.command(epilog=EXIT_STATUS)(classify)
app.command(epilog=EXIT_STATUS)(tag)
app.command()(models)
app.command()(doctor)
app.add_typer(bench, name="bench")


@app.callback()
def _tool(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say which version this is.", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    """TResNet, trained, exported to Triton, and served: pictures in, labels out."""


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a picture's name may hold bytes that are no text
    app()
