"""Does a checkpoint of other classes at another size save steps? Five kinds of garments first, then the other five.

``python -m benchmarks.fine_tune`` needs Debian's ``dataset-fashion-mnist``. It trains Fashion-MNIST's odd classes at
24 px, then the even ones at 28 px, of which only few pictures are given: from scratch, and in a third of the steps
from scratch and from the first checkpoint. It writes ``benchmarks/results/fine_tune.json``. Each seed draws training
pictures of its own; all are judged on the same pictures of the test part.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import torch
import typer

from training.data import FASHION_FOLDER, FASHION_LABELS
from training.loop import Run, train
from training.pictures import encode_png, read_idx
from training.recipes import Recipe, find_recipe

RESULT = Path(__file__).parent / "results" / "fine_tune.json"
KNOWN, NEW = (1, 3, 5, 7, 9), (0, 2, 4, 6, 8)
KNOWN_PX, NEW_PX = 24, 28
KNOWN_PER_CLASS = 5900
VALIDATION_PER_CLASS, TEST_PER_CLASS = 10, 200
KNOWN_BATCH, NEW_BATCH = 50, 10
SHARE = 3


def main(
    work: Annotated[Path, typer.Option(help="Where pictures and runs go; what is there already is used.")] = Path(
        "runs/fine_tune"
    ),
    per_class: Annotated[int, typer.Option(help="Training pictures of each new class.")] = 10,
    epochs: Annotated[int, typer.Option(help="From scratch; a multiple of three.")] = 24,
    learning_rate: Annotated[float, typer.Option(help="From scratch.")] = 1e-3,
    tuned_learning_rate: Annotated[float, typer.Option(help="From the checkpoint.")] = 1e-3,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    result: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULT,
) -> None:
    """Compare, print and write."""
    logging.basicConfig(level=logging.WARNING)
    pretrained = _pretrain(work)
    rows = []
    for seed in range(seeds):
        data = _folder(work / f"new-{per_class}-{seed}", NEW, per_class, seed)
        scratch = _recipe(NEW_PX, NEW_BATCH, epochs, learning_rate)
        third = replace(scratch, epochs=epochs // SHARE)
        row: dict[str, float] = {"seed": seed}
        for name, recipe, init in (
            ("from_scratch", scratch, None),
            ("fine_tuned_in_a_third", replace(third, learning_rate=tuned_learning_rate), pretrained),
            ("from_scratch_in_a_third", third, None),
        ):
            run = Run(recipe, work / f"{data.name}-{name}", seed=seed, data=str(data), init=init, resume=True)
            row[name] = train(run).figures["top1"]
            print(row, flush=True)
        rows.append(row)
        steps = per_class * len(NEW) // NEW_BATCH * epochs
        content: dict[str, Any] = {
            "what": "TResNet-M's top-1 on unseen Fashion-MNIST pictures of even classes; fine-tuned from the odd ones",
            "command": " ".join(["python -m benchmarks.fine_tune", *sys.argv[1:]]),
            "machine": f"{os.cpu_count()} CPU cores, torch {torch.__version__}, Python {platform.python_version()}",
            "date": time.strftime("%Y-%m-%d"),
            "image_size": {"pretrained": KNOWN_PX, "new": NEW_PX},
            "pictures": {
                "pretraining": KNOWN_PER_CLASS * len(KNOWN),
                "training": per_class * len(NEW),
                "test": TEST_PER_CLASS * len(NEW),
            },
            "learning_rate": {"from_scratch": learning_rate, "fine_tuned": tuned_learning_rate},
            "steps": {"from_scratch": steps, "in_a_third": steps // SHARE},
            "rows": rows,
            "means": {name: round(mean(row[name] for row in rows), 4) for name in rows[0] if name != "seed"},
        }
        result.parent.mkdir(exist_ok=True)
        result.write_text(json.dumps(content, indent=1) + "\n")
    print(content["means"])


def _recipe(image_size: int, batch_size: int, epochs: int, learning_rate: float) -> Recipe:
    return replace(
        find_recipe("transfer"),
        image_size=image_size,
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        rise=0.3,
        ema=None,
        crop_area=None,
        policy="none",
        cutout=0.0,
    )


def _pretrain(work: Path) -> Path:
    """The checkpoint of the known classes; made once."""
    out = work / "pretrained"
    if not (out / "curves.png").exists():
        data = _folder(work / "known", KNOWN, KNOWN_PER_CLASS, 0)
        figures = train(Run(_recipe(KNOWN_PX, KNOWN_BATCH, 1, 1e-3), out, data=str(data), resume=True)).figures
        print("known classes:", figures, flush=True)
    return out / "best.pt"


def _folder(root: Path, classes: tuple[int, ...], per_class: int, seed: int) -> Path:
    """``classes`` as folders of pictures: training and validation drawn by ``seed``, and the first test pictures."""
    if root.exists():
        return root
    temporary = root.with_name(f".{root.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    for part in ("train", "t10k"):
        pixels, labels = read_idx(Path(FASHION_FOLDER), part)
        for label in classes:
            own = np.flatnonzero(labels == label)
            if part == "train":
                own = np.random.default_rng([seed, label]).permutation(own)
                splits = {"train": own[:per_class], "val": own[per_class:][:VALIDATION_PER_CLASS]}
            else:
                splits = {"test": own[:TEST_PER_CLASS]}
            for split, chosen in splits.items():
                folder = temporary / split / FASHION_LABELS[label].replace("/", " or ")
                folder.mkdir(parents=True)
                for index in chosen:
                    (folder / f"{index:05}.png").write_bytes(encode_png(pixels[index]))
    temporary.rename(root)
    return root


if __name__ == "__main__":
    typer.run(main)
