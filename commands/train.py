"""``tresnet train``: a recipe becomes a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from commands.console import console, fails_with_2
from commands.export import Arch


def train(
    recipe: Annotated[str, typer.Argument(help="digits, multidigits or fashion.", metavar="RECIPE")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the recipe's data, where it does not bring its own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the run goes.  [default: runs/RECIPE]", metavar="RUN_DIR")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    image_size: Annotated[int | None, typer.Option(min=20, help="Side of the network's input, in pixels.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pictures in a step.")] = None,
    init: Annotated[Path | None, typer.Option(help="Start from another run's weights.", metavar="CHECKPOINT")] = None,
    resume: Annotated[bool, typer.Option(help="Go on where RUN_DIR's last checkpoint ended.")] = False,
    seed: Annotated[int, typer.Option(help="Decides the split, the order and the first weights.")] = 0,
    norm: Annotated[str, typer.Option(help="Norm layers: auto, package, own or bn.")] = "auto",
    arch: Annotated[Arch | None, typer.Option(help="Another architecture than the recipe's.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a model; checkpoints, figures, curves and held-out pictures go to RUN_DIR."""
    with fails_with_2():
        import logging
        from dataclasses import replace

        import torch
        from pydantic import ValidationError

        from training.loop import Run
        from training.loop import train as run_training
        from training.recipes import find_recipe
        from tresnet.errors import UserError
        from tresnet.inplace_abn import NORMS

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        changes: dict[str, Any] = {"epochs": epochs, "image_size": image_size, "batch_size": batch_size, "arch": arch}
        chosen = replace(find_recipe(recipe), **{key: value for key, value in changes.items() if value is not None})
        if norm not in NORMS:
            raise UserError(f"--norm takes {', '.join(NORMS)}, not {norm!r}")
        if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
            raise UserError(f"--device {device} is not to be had here: use auto or cpu")
        use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        run = Run(
            recipe=chosen,
            out=out or Path("runs") / recipe,
            seed=seed,
            data=data,
            init=init,
            resume=resume,
            norm=norm,  # type: ignore[arg-type]
            device=torch.device("cuda" if use_cuda else "cpu"),
        )
        try:
            figures = run_training(run)
        except ValidationError as error:
            raise UserError(f"{error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from error
        except KeyboardInterrupt:
            console.print(f"stopped; go on with: tresnet train {recipe} --out {run.out} --resume")
            raise typer.Exit(130) from None
    words = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if name != "images")
    console.print(f"[green]{run.out / 'best.pt'}[/green]: on {figures['images']} held-out pictures {words}")
