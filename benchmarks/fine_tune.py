"""Does a checkpoint of other classes at another size save steps? Handwritten 0 to 4 first, then 5 to 9.

``python -m benchmarks.fine_tune`` trains scikit-learn's digits 0 to 4 at 40 px, then 5 to 9 at 32 px: from scratch, and
in a third of the steps from scratch and from the first checkpoint; each with three seeds, which draw splits of their
own. It writes ``benchmarks/results/fine_tune.json``; ten minutes on two CPU cores.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import typer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks.serving.report import machine
from training.loop import Run, train
from training.pictures import encode_png
from training.recipes import Recipe, find_recipe

RESULT = Path(__file__).parent / "results" / "fine_tune.json"
KNOWN, NEW = range(5), range(5, 10)
KNOWN_PX, NEW_PX = 40, 32
KNOWN_EPOCHS = 8
BATCH = 32
SHARE = 3


def main(
    epochs: Annotated[int, typer.Option(help="From scratch; a multiple of three.")] = 6,
    learning_rate: Annotated[float, typer.Option(help="From scratch.")] = 1e-3,
    tuned_learning_rate: Annotated[float, typer.Option(help="From the checkpoint.")] = 1e-3,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    result: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULT,
) -> None:
    """Compare, print and write."""
    logging.basicConfig(level=logging.WARNING)
    scratch = _recipe(NEW_PX, epochs, learning_rate)
    third = replace(scratch, epochs=epochs // SHARE)
    tuned = replace(third, learning_rate=tuned_learning_rate)
    rows: list[dict[str, float]] = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            known, new = _pictures(root / "known", KNOWN, seed), _pictures(root / "new", NEW, seed)
            first = Run(_recipe(KNOWN_PX, KNOWN_EPOCHS, 1e-3), root / "first", seed=seed, data=str(known))
            row = {"seed": seed, "known_classes": train(first).figures["top1"]}
            for name, recipe, init in (
                ("from_scratch", scratch, None),
                ("fine_tuned_in_a_third", tuned, root / "first" / "best.pt"),
                ("from_scratch_in_a_third", third, None),
            ):
                run = Run(recipe, root / name, seed=seed, data=str(new), init=init)
                row[name] = round(train(run).figures["top1"], 4)
        print(row, flush=True)
        rows.append(row)
    steps = len(list(_digits(NEW)[0])) * 7 // 10 // BATCH * epochs
    content: dict[str, Any] = {
        "what": "TResNet-M's top-1 on held-out handwritten 5 to 9 at 32 px; fine-tuned from 0 to 4 at 40 px",
        **machine(),
        "learning_rate": {"from_scratch": learning_rate, "fine_tuned": tuned_learning_rate},
        "steps": {"from_scratch": steps, "in_a_third": steps // SHARE},
        "rows": rows,
        "means": {name: round(mean(row[name] for row in rows), 4) for name in rows[0] if name != "seed"},
    }
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps(content, indent=1) + "\n")
    print(content["means"])


def _recipe(image_size: int, epochs: int, learning_rate: float) -> Recipe:
    """The digits' own recipe, on pictures in folders."""
    digits = find_recipe("digits")
    return replace(
        digits, name="transfer", image_size=image_size, batch_size=BATCH, epochs=epochs, learning_rate=learning_rate,
        mirror=False,
    )  # fmt: skip


def _digits(classes: range) -> tuple[Any, Any]:
    data = load_digits()
    chosen = np.isin(data.target, classes)
    return (data.images[chosen] * 255 / 16).astype(np.uint8), data.target[chosen]


def _pictures(root: Path, classes: range, seed: int) -> Path:
    """``classes`` as folders: 70 % to train on, 10 % to choose the best weights by, 20 % to judge."""
    pixels, targets = _digits(classes)
    train_part, rest = train_test_split(np.arange(len(pixels)), test_size=0.3, random_state=seed, stratify=targets)
    val, test = train_test_split(rest, test_size=2 / 3, random_state=seed, stratify=targets[rest])
    for split, indices in (("train", train_part), ("val", val), ("test", test)):
        for index in indices:
            file = root / split / str(targets[index]) / f"{index:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_png(pixels[index]))
    return root


if __name__ == "__main__":
    typer.run(main)
