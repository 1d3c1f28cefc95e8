"""``tresnet eval``: a checkpoint's figures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from commands.console import fails_with_2, out


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A training run's checkpoint.", metavar="CHECKPOINT")],
    data: Annotated[
        Path | None, typer.Option(help="Labelled pictures; by default those that the run's recipe held out.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=20, help="Another side for the network's input, in pixels.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone.")] = False,
) -> None:
    """Measure a checkpoint: top-1 and top-5, or mAP and F1."""
    with fails_with_2():
        import torch

        from training.loop import evaluate_checkpoint

        started = time.perf_counter()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        figures = evaluate_checkpoint(checkpoint, data, device, image_size=image_size)
        figures["seconds"] = round(time.perf_counter() - started, 2)
    if not as_json:
        table = Table("figure", "value", title=str(checkpoint))
        for name, value in figures.items():
            table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
        out.print(table)
    typer.echo(json.dumps(figures))
