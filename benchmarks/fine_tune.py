"""Does a checkpoint of other classes at another size save steps? Fashion photos first, then handwritten digits.

``python -m benchmarks.fine_tune runs/fashion/best.pt`` trains digits at 40 px from scratch for six epochs, and from
the garments' weights (32 px) for two, each with three seeds, and writes ``benchmarks/results/fine_tune.json``.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean

import typer

from training.loop import Run, train
from training.recipes import find_recipe

RESULT = Path(__file__).parent / "results" / "fine_tune.json"
IMAGE_SIZE = 40
EPOCHS_FROM_SCRATCH = 6
SHARE = 3
SEEDS = (0, 1, 2)


def main(checkpoint: Path) -> None:
    """Compare, print and write."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    digits = replace(find_recipe("digits"), image_size=IMAGE_SIZE)
    scratch = replace(digits, epochs=EPOCHS_FROM_SCRATCH)
    tuned = replace(digits, epochs=EPOCHS_FROM_SCRATCH // SHARE)
    rows = []
    for seed in SEEDS:
        row: dict[str, float] = {"seed": seed}
        for name, recipe, init in (
            ("from_scratch", scratch, None),
            ("from_scratch_in_a_third", tuned, None),
            ("fine_tuned_in_a_third", tuned, checkpoint),
        ):
            with tempfile.TemporaryDirectory() as folder:
                row[name] = train(Run(recipe, Path(folder) / "run", seed=seed, init=init)).figures["top1"]
        rows.append(row)
        print(row, flush=True)
    means = {name: mean(row[name] for row in rows) for name in rows[0] if name != "seed"}
    content = {
        "what": "top-1 on 360 held-out digits at 40 px; fine-tuned from Fashion-MNIST's ten garments at 32 px",
        "steps": {"from_scratch": 19 * EPOCHS_FROM_SCRATCH, "in_a_third": 19 * EPOCHS_FROM_SCRATCH // SHARE},
        "rows": rows,
        "means": means,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    print(means)


if __name__ == "__main__":
    typer.run(main)
