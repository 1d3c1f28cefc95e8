"""``tresnet eval``: a checkpoint's figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from commands.console import fails_with_2, out
from tresnet.terms import SMALLEST_SIDE, Task


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A training run's checkpoint, a release's .pth, timm's .safetensors or .pth, or hf://timm/NAME.",
            metavar="CHECKPOINT",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled pictures, in any form that train reads. Of those that the run was trained on, only the ones "
            "held out for testing are measured; by default these, where they were when the run began.",
            metavar="DATA",
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=SMALLEST_SIDE, help="Another side for the network's input, in pixels.")
    ] = None,
    task: Annotated[Task | None, typer.Option(help="For published weights, which do not say.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write the confusion matrix, the calibration and the table of labels here.", metavar="DIR"),
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Go on without pictures that cannot be read.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone.")] = False,
) -> None:
    """Measure a checkpoint: top-1 and top-5, or mAP, precision, recall and F1; and how well it is calibrated.

    Under torchrun the processes share the pictures and find the same figures.
    """
    with fails_with_2():
        import logging

        from training.distributed import joined
        from training.evaluation import evaluate_checkpoint
        from training.figures import NAMES, in_json, shown
        from training.report import write_report
        from tresnet.checkpoint import load_checkpoint
        from tresnet.devices import choose_device, loading_processes

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        started = time.perf_counter()
        with joined(choose_device(device)) as world:
            loaded = load_checkpoint(checkpoint, task=task, image_size=image_size)
            workers = loading_processes(world.device)
            evaluation = evaluate_checkpoint(
                loaded, world, where=data, image_size=image_size, workers=workers, skip_bad=skip_bad
            )
            if not world.is_first:
                return
        if report is not None:
            write_report(report, evaluation)
    figures = {"images": len(evaluation.scores), **evaluation.figures}
    figures["seconds"] = round(time.perf_counter() - started, 2)
    if not as_json:
        table = Table("figure", "value", "in JSON", title=str(checkpoint))
        names = [name for name in figures if name != "top5" or len(evaluation.labels) > 5]
        for name in names:
            table.add_row(NAMES[name], shown(name, figures[name]), name)
        out.print(table)
    typer.echo(in_json(figures))
