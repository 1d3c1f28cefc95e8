"""``tresnet train``: a recipe becomes a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.console import console, fails_with_2
from tresnet.terms import SMALLEST_SIDE, Arch, Norm, Precision


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="digits, multidigits: handwritten digits that come with it, one or several in a picture. fashion: "
            "Fashion-MNIST. transfer: pictures of your own, one label each. coco: pictures with several labels each. "
            "imagenet, imagenet_448: the paper's own, for days of GPUs. The options below override what "
            "these set.",
            metavar="RECIPE",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled pictures: <label>/<picture> folders, perhaps in train/ and val/; labels.csv or a .csv or "
            ".parquet file; COCO; tar shards; hf://OWNER/NAME.",
            metavar="DATA",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the run goes. Default: runs/RECIPE.", metavar="RUN_DIR")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=SMALLEST_SIDE, help="Side of the network's input, in pixels.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pictures in a step, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="The highest of the schedule.")] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Parts that a step's pictures are cut into.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Number format of the forward pass.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Start from these weights: another run's, a release's or timm's.", metavar="CHECKPOINT"),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where RUN_DIR's last checkpoint ended.")] = False,
    skip_bad: Annotated[bool, typer.Option(help="Go on without pictures that cannot be read.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Decides the split, the order and the first weights.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that load pictures. Default: 0 on a CPU, else one a core, up to 16."),
    ] = None,
    norm: Annotated[Norm, typer.Option(help="Norm layers; auto is own.")] = "auto",
    arch: Annotated[
        Arch | None, typer.Option(help="Another architecture than the recipe's; with --init, that of the weights.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a model; checkpoints, figures, curves, a model card and held-out pictures go to RUN_DIR.

    tensorboard --logdir runs shows it live.

    Ctrl-C saves the step under way, and --resume goes on from there. Several processes:
    torchrun --nproc-per-node 8 --no-python tresnet train RECIPE …
    """
    with fails_with_2():
        import logging
        from dataclasses import replace

        from training.figures import in_words
        from training.loop import StoppedError
        from training.loop import train as run_training
        from training.recipes import find_recipe
        from training.trainer import Run
        from tresnet.card import CARD_FILE
        from tresnet.checkpoint import load_checkpoint
        from tresnet.devices import choose_device, loading_processes
        from tresnet.errors import UserError

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        if init is not None and arch is None:
            arch = load_checkpoint(init).facts.arch  # type: ignore[assignment]
        changes: dict[str, Any] = {
            "epochs": epochs,
            "image_size": image_size,
            "batch_size": batch_size,
            "fits_small_data": None if batch_size is None else False,
            "learning_rate": learning_rate,
            "accumulate": accumulate,
            "precision": precision,
            "arch": arch,
        }
        found = find_recipe(recipe)
        found.preprocessing().changed(image_size=image_size)  # which refuses a size that cannot be
        chosen = replace(found, **{key: value for key, value in changes.items() if value is not None})
        if not math.isfinite(chosen.learning_rate):
            raise UserError(f"--learning-rate must be a number, not {learning_rate}")
        where = choose_device(device)
        if chosen.precision == "fp16" and where.type == "cpu":
            logging.warning("fp16 is for GPUs: a CPU computes it many times slower than fp32, or bf16 if it has that")
        run = Run(
            recipe=chosen,
            out=out or Path("runs") / recipe,
            seed=seed,
            data=data,
            init=init,
            resume=resume,
            norm=norm,
            device=where,
            workers=loading_processes(where) if workers is None else workers,
            skip_bad=skip_bad,
        )
        try:
            evaluation = run_training(run)
        except StoppedError:
            console.print(f"stopped; go on with the same command and --resume (it is all in {run.out})")
            raise typer.Exit(130) from None
    names = ["top1", *(["top5"] if len(evaluation.labels) > 5 else []), "map", "f1", "ece"]
    console.print(
        f"[green]{run.out / 'best.pt'}[/green]: on {len(evaluation.scores):,} held-out pictures "
        f"{in_words(evaluation.figures, names)}; {run.out / CARD_FILE} says more"
    )
