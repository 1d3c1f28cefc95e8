"""Does a checkpoint of other classes at another size save steps? Six garments first, then four new ones.

``python -m benchmarks.fine_tune`` trains on Fashion-MNIST (Debian's ``dataset-fashion-mnist``): 24,000 pictures of six
garments at 24 px; then, at 32 px, four others of which few pictures are labelled, which is what fine-tuning is for.
From scratch at full length, from the checkpoint in a third of the steps, and from scratch in a third. Every learning
rate is tried with one seed, and the best on validation pictures is taken for all seeds; test pictures decide nothing.

What is done is kept in ``runs/fine_tune``, so that an interrupted benchmark goes on. A quarter of an hour on two cores.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from benchmarks.serving.report import machine
from training.data import FASHION_FOLDER
from training.layouts import read_idx
from training.loop import train
from training.pictures import Pixels, encode_png
from training.recipes import Recipe, find_recipe
from training.trainer import Run

RESULT = Path(__file__).parent / "results" / "fine_tune.json"
KNOWN, NEW = (0, 3, 4, 5, 7, 8), (1, 2, 6, 9)
"""T-shirt, dress, coat, sandal, sneaker, bag; then trouser, pullover, shirt, ankle boot."""
KNOWN_PX, NEW_PX = 24, 32
TEST = 250
"""Pictures of each new garment."""
EPOCHS, BATCH = 24, 20
TRIED_ON, SEEDS = 0, (0, 1, 2)
WAYS = {
    "from_scratch": (EPOCHS, (5e-4, 1e-3, 2e-3)),
    "fine_tuned_in_a_third": (EPOCHS // 3, (3e-4, 1e-3)),
    "from_scratch_in_a_third": (EPOCHS // 3, (1e-3, 2e-3)),
}
"""Epochs, and the learning rates to choose from."""

Classes = npt.NDArray[np.int64]


def main(
    labelled: Annotated[int, typer.Option(help="Training pictures of each new garment.", min=5)] = 25,
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/fine_tune"),
    result: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULT,
) -> None:
    """Compare, print and write."""
    logging.basicConfig(level=logging.WARNING)
    first = _first(folder / "first")
    rows = _Rows(folder / str(labelled), first, labelled)
    chosen = {
        way: max(rates, key=lambda rate, way=way: rows.get(way, rate, TRIED_ON)["val"])  # type: ignore[misc]
        for way, (_, rates) in WAYS.items()
    }
    by_seed = [
        {"seed": seed} | {way: rows.get(way, rate, seed)["test"] for way, rate in chosen.items()} for seed in SEEDS
    ]
    steps = EPOCHS * (labelled * len(NEW) // BATCH)
    content: dict[str, Any] = {
        "what": f"TResNet-M's top-1 on {TEST * len(NEW)} test pictures of four garments; {labelled * len(NEW)} are "
        f"trained on at {NEW_PX} px; fine-tuned from six other garments at {KNOWN_PX} px",
        **machine(),
        "steps": {"from_scratch": steps, "in_a_third": steps // 3},
        "learning_rate": chosen,
        "tried": [rows.get(way, rate, TRIED_ON) for way, (_, rates) in WAYS.items() for rate in rates],
        "rows": by_seed,
        "means": {way: round(mean(row[way] for row in by_seed), 4) for way in WAYS},
    }
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps(content, indent=1) + "\n")
    print(content["means"])


class _Rows:
    """Runs on the new garments, each made once and remembered in ``rows.jsonl``."""

    def __init__(self, folder: Path, first: Path, labelled: int) -> None:
        self.folder, self.first, self.labelled, self.path = folder, first, labelled, folder / "rows.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.known = [json.loads(line) for line in lines]

    def get(self, way: str, rate: float, seed: int) -> dict[str, Any]:
        """The best epoch's validation figure, and the test figure of that epoch's weights."""
        key = {"way": way, "learning_rate": rate, "seed": seed}
        for row in self.known:
            if key.items() <= row.items():
                return dict(row)
        out = self.folder / f"{way}-{rate:g}-{seed}"
        run = Run(
            _recipe(NEW_PX, WAYS[way][0], BATCH, rate),
            out,
            seed=seed,
            data=str(_new_garments(self.folder / f"new-{seed}", seed, self.labelled)),
            init=self.first if way.startswith("fine") else None,
            resume=out.exists(),
        )
        test = train(run).figures["top1"]
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        row = key | {"val": max(line["val_top1"] for line in lines if "epoch" in line), "test": test}
        for weights in out.glob("*.pt"):
            weights.unlink()
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.known.append(row)
        print(row, flush=True)
        return row


def _recipe(image_size: int, epochs: int, batch_size: int, learning_rate: float) -> Recipe:
    """The recipe of Fashion-MNIST, on pictures in folders."""
    return replace(
        find_recipe("fashion"), name="transfer", image_size=image_size, batch_size=batch_size, epochs=epochs,
        learning_rate=learning_rate,
    )  # fmt: skip


def _first(out: Path) -> Path:
    """A checkpoint of the known garments."""
    if not (out / "complete").exists():
        recipe = replace(_recipe(KNOWN_PX, epochs=2, batch_size=64, learning_rate=1e-3), precision="bf16")
        train(Run(recipe, out, data=str(_known_garments(out.with_name("known"))), resume=out.exists()))
        (out / "complete").touch()
    return out / "best.pt"


def _known_garments(root: Path) -> Path:
    pixels, classes = read_idx(Path(FASHION_FOLDER), "train")
    random = np.random.default_rng(0)
    for garment in KNOWN:
        own = random.permutation(np.flatnonzero(classes == garment))
        _write(root / "train", pixels, classes, own[:4000])
        _write(root / "val", pixels, classes, own[5900:])
    return root


def _new_garments(root: Path, seed: int, labelled: int) -> Path:
    """Few to train on and twice as many to choose by, drawn by ``seed``; the same test pictures for all seeds."""
    pixels, classes = read_idx(Path(FASHION_FOLDER), "train")
    test_pixels, test_classes = read_idx(Path(FASHION_FOLDER), "t10k")
    random = np.random.default_rng(100 + seed)
    for garment in NEW:
        own = random.permutation(np.flatnonzero(classes == garment))
        _write(root / "train", pixels, classes, own[:labelled])
        _write(root / "val", pixels, classes, own[labelled : 3 * labelled])
        _write(root / "test", test_pixels, test_classes, np.flatnonzero(test_classes == garment)[:TEST])
    return root


def _write(root: Path, pixels: Pixels, classes: Classes, indices: Classes) -> None:
    for index in indices:
        file = root / str(classes[index]) / f"{index:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(pixels[index]))


if __name__ == "__main__":
    typer.run(main)
