"""The model card of a run: what it was trained on and how, what came of it, and what was not tried, as Markdown.

Every sentence follows from the run's own facts. The card is to be read without the plots that lie beside it.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from training.data import DataSet
from training.evaluation import Evaluation, doubt_in
from training.metrics import precision_recall_f1, reliability
from training.recipes import Recipe
from training.report import confusion, confusion_pairs, per_label_table
from tresnet.card import cell, network_section, preprocessing_section, table
from tresnet.checkpoint import ModelFacts

_ROWS = 100
_MATRIX_LABELS = 20
_FEW_PICTURES = 20


@dataclass(frozen=True)
class Making:
    """How a run went: what its card tells beside the scores."""

    recipe: Recipe
    seed: int
    init: str | None
    steps: int
    seconds: float
    device: str
    processes: int


def write_card(making: Making, data: DataSet, facts: ModelFacts, evaluation: Evaluation) -> str:
    """The card; ``facts`` and ``evaluation`` are the best checkpoint's."""
    sections = [
        f"# Model card: {making.recipe.name}\n\n"
        f"Trained on {datetime.datetime.now(datetime.UTC).date()} with the recipe `{making.recipe.name}`.\n",
        _scores(data, facts, evaluation),
        "## Limits\n\n" + "".join(f"- {limit}\n" for limit in _limits(making, data, facts, evaluation)),
        _data(data, evaluation),
        _per_label(evaluation),
        _confusion(evaluation) if evaluation.task == "classify" else "",
        _calibration(evaluation),
        network_section(facts),
        preprocessing_section(facts.preprocessing),
        _making(making, data),
    ]
    return "\n".join(section for section in sections if section)


def device_name(device: torch.device) -> str:
    """As people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread(s)"


def _data(data: DataSet, evaluation: Evaluation) -> str:
    judged = "the validation pictures again" if data.judged_on_val else f"{len(data.test):,}"
    rows = [
        ("training", f"{len(data.train):,}"),
        ("validation: choosing the best epoch, temperature, thresholds", f"{len(data.val):,}"),
        ("test: all scores in this card", judged),
    ]
    return f"## Data\n\n{_sentence(data.origin)}.\n\n{table(('split', 'pictures'), rows)}"


def _sentence(text: str) -> str:
    """With a capital letter, and without markup that a file's name may have brought."""
    return text[:1].upper() + text[1:].replace("<", "&lt;")


def _making(making: Making, data: DataSet) -> str:
    minutes = making.seconds / 60
    told = [
        ("steps", f"{making.steps:,}"),
        ("initial weights", making.init or "random"),
        ("seed", making.seed),
        ("hardware", f"{making.processes} × {making.device}" if making.processes > 1 else making.device),
        ("duration", f"{minutes:.1f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"),
        ("tools", f"torch {torch.__version__}, Python {platform.python_version()}"),
    ]
    # The recipes that bring their pictures vary them in a way of their own.
    variations = [("variations", "turned, scaled and moved a little")] if data.own_test else _variations(making.recipe)
    return f"## Training\n\n{table(('what', 'value'), [*told, *_choices(making.recipe), *variations])}"


def _choices(recipe: Recipe) -> Iterator[tuple[str, object]]:
    """What the recipe sets; what it leaves off is not told, nor what other sections tell."""
    yield "image size", recipe.image_size
    yield "epochs", recipe.epochs
    if recipe.pictures_per_epoch is not None:
        yield "pictures made up for an epoch", recipe.pictures_per_epoch
    yield "pictures in a step", recipe.batch_size
    if recipe.accumulate > 1:
        yield "parts that a step's pictures are cut into", recipe.accumulate
    yield "optimizer", recipe.optimizer
    yield "highest learning rate", f"{recipe.learning_rate:g}, after the first {recipe.rise:.0%} of the steps"
    yield "weight decay", f"{recipe.weight_decay:g}"
    yield "number format", recipe.precision
    if recipe.clip_norm is not None:
        yield "gradients cut to the norm", f"{recipe.clip_norm:g}"
    if recipe.ema is not None:
        yield "decay of the weights' moving average", f"{recipe.ema:g}"
    for name in ("label_smoothing", "mixup", "cutmix"):
        if value := getattr(recipe, name):
            yield name.replace("_", " "), f"{value:g}"


def _variations(recipe: Recipe) -> Iterator[tuple[str, object]]:
    """How training's pictures differ from epoch to epoch."""
    if recipe.crop_area is not None:
        yield "random crops", "{:g} to {:g} of the area".format(*recipe.crop_area)
    if recipe.mirror:
        yield "mirrored", "half of the pictures, at random"
    if recipe.policy != "none":
        yield "random colours and shapes", {"auto": "AutoAugment", "rand": "RandAugment"}[recipe.policy]
    if recipe.cutout:
        yield "cutout", f"a square of {recipe.cutout:g} of the side, in half of the pictures"


def _scores(data: DataSet, facts: ModelFacts, evaluation: Evaluation) -> str:
    figures, pictures = evaluation.figures, len(evaluation.scores)
    split = "validation" if data.judged_on_val else "test"
    if evaluation.task == "classify":
        low, high = binomtest(round(figures["top1"] * pictures), pictures).proportion_ci(method="wilson")
        rows: list[tuple[object, ...]] = [
            ("top-1", figures["top1"], f"95 % interval {low:.3f} to {high:.3f}"),
            ("top-5", figures["top5"], ""),
        ]
    else:
        fitted = precision_recall_f1(evaluation.scores, evaluation.targets, np.asarray(facts.thresholds or 0.5))
        at_half = {name: f"{figures[name]:.3f} with all thresholds at 0.5" for name in fitted}
        rows = [("mAP", figures["map"], ""), *((name.upper(), value, at_half[name]) for name, value in fitted.items())]
    rows.append(
        (
            "calibration error (ECE)",
            figures["ece"],
            f"{figures['ece_raw']:.3f} without temperature {facts.temperature:g}",
        )
    )
    return f"## Scores\n\nOn the {pictures:,} {split} pictures.\n\n{table(('figure', 'value', 'note'), rows)}"


def _calibration(evaluation: Evaluation) -> str:
    what = "the best label's score" if evaluation.task == "classify" else "every label's score"
    rows = [
        (f"{row.low:.2f} to {row.high:.2f}", f"{row.decisions:,}", row.said, row.right)
        for row in reliability(evaluation.task, evaluation.scores, evaluation.targets)
    ]
    columns = ("score", "decisions", "mean score", "share right")
    return f"## Calibration\n\nHow often {what} is right.\n\n{table(columns, rows)}"


def _per_label(evaluation: Evaluation) -> str:
    rows = per_label_table(evaluation)
    keys = [
        "label",
        "pictures",
        "precision",
        "recall",
        "f1",
        *(("ap", "threshold") if evaluation.task == "tag" else ()),
    ]
    worst_first = sorted(rows, key=lambda row: row["f1"])[:_ROWS]
    shown = rows if len(rows) <= _ROWS else worst_first
    which = (
        ""
        if len(rows) <= _ROWS
        else f"The worst {_ROWS} of {len(rows)}; the run's folder has all in `per_label.json`.\n\n"
    )
    cells = [[row.get(key) for key in keys] for row in shown]
    return f"## Labels\n\n{which}{table([{'f1': 'F1', 'ap': 'AP'}.get(key, key) for key in keys], cells)}"


def _confusion(evaluation: Evaluation) -> str:
    labels = evaluation.labels
    if len(labels) <= _MATRIX_LABELS:
        counts = confusion(evaluation)
        words = "Rows: the right label. Columns: the answer."
        rows = [(label, *(count or "" for count in row)) for label, row in zip(labels, counts.tolist(), strict=True)]
        return f"## Confusion\n\n{words}\n\n{table(('', *map(cell, labels)), rows)}"
    wrong = [(pair, count) for pair, count in confusion_pairs(evaluation).items() if pair[0] != pair[1]]
    most = sorted(wrong, key=lambda item: (-item[1], item[0]))[:_MATRIX_LABELS]
    rows = [(labels[right], labels[said], count) for (right, said), count in most]
    words = "The most frequent; the run's folder has all in `confusion.json`."
    return f"## Confusion\n\n{words}\n\n{table(('right', 'answered', 'pictures'), rows)}"


def _limits(making: Making, data: DataSet, facts: ModelFacts, evaluation: Evaluation) -> Iterator[str]:
    """What the scores do not say, as far as the run itself shows it."""
    if (doubt := doubt_in(evaluation)) is not None:
        yield f"{doubt[:1].upper()}{doubt[1:]}."
    if data.judged_on_val:
        yield (
            "There were no test pictures: the scores are on the validation pictures, by which the best epoch, the "
            "temperature and the thresholds were chosen, and so flatter the model."
        )
    yield (
        f"All {len(evaluation.scores):,} pictures behind the scores are from the data set that training used. "
        "Pictures of another source (other cameras, places, people, qualities) were not tested."
    )
    support = {row["label"]: row["pictures"] for row in per_label_table(evaluation)}
    if unseen := [label for label, pictures in support.items() if pictures == 0]:
        yield f"Not tested at all, for want of pictures: {_named(unseen)}."
    if few := [label for label, pictures in support.items() if 0 < pictures < _FEW_PICTURES]:
        yield f"Tested on fewer than {_FEW_PICTURES} pictures each, so that their rows say little: {_named(few)}."
    if facts.task == "classify":
        yield "A picture of none of the labels is given one of them all the same; how sure of it was not tested."
    else:
        yield "How often pictures with none of the labels are given some was tested only as far as the data has such."
    yield (
        f"One run with one seed ({making.seed}); another one's scores differ. Tested at "
        f"{facts.preprocessing.image_size} pixels alone, in float32, on undamaged pictures; groups of people or "
        "things within a label were not compared."
    )


def _named(labels: list[str]) -> str:
    more = f" and {len(labels) - 10} more" if len(labels) > 10 else ""
    return ", ".join(map(cell, labels[:10])) + more
