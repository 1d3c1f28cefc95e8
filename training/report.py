"""The tables and plots that show an evaluation: an :class:`Evaluation` enters, JSON and PNG files leave."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation import Evaluation
from training.metrics import Bin, average_precisions, reliability

MOST_DRAWN = 1000
"""Labels up to which all pairs of them are counted and drawn; of more only those that occur are written."""
_AS_WRITTEN: dict[str, Any] = {"parse_math": False}
"""Of text that is the user's: between two ``$`` matplotlib reads TeX, and most of it is none."""


def write_report(folder: Path, evaluation: Evaluation) -> None:
    """As JSON and PNG in ``folder``: ``per_label``, ``calibration`` and, where one label wins, ``confusion``."""
    folder.mkdir(parents=True, exist_ok=True)
    table = per_label_table(evaluation)
    (folder / "per_label.json").write_text(json.dumps(table, indent=1) + "\n")
    _draw_per_label(folder / "per_label.png", table, "recall" if evaluation.task == "classify" else "ap")
    bins = reliability(evaluation.task, evaluation.scores, evaluation.targets)
    (folder / "calibration.json").write_text(json.dumps([row._asdict() for row in bins], indent=1) + "\n")
    _draw_calibration(folder / "calibration.png", bins, evaluation.figures["ece"])
    if evaluation.task == "classify":
        _write_confusion(folder, evaluation)


def _write_confusion(folder: Path, evaluation: Evaluation) -> None:
    content: dict[str, Any] = {"labels": evaluation.labels, "rows": "right", "columns": "answered"}
    if len(evaluation.labels) <= MOST_DRAWN:
        counts = confusion(evaluation)
        content["counts"] = counts.tolist()
        _draw_confusion(folder / "confusion.png", counts, evaluation.labels)
    else:  # a full matrix would take gigabytes, and nearly all of it is nothing
        content["pairs"] = [(*pair, count) for pair, count in sorted(confusion_pairs(evaluation).items())]
    (folder / "confusion.json").write_text(json.dumps(content) + "\n")


def per_label_table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """For each label its pictures, precision, recall and F1, and for tags its average precision and threshold."""
    scores, targets = evaluation.scores, evaluation.targets
    if evaluation.task == "classify":
        answered, labels = scores.argmax(axis=1), scores.shape[1]
        counted = targets[answered == targets], answered, targets
        right, said, there = (np.bincount(part, minlength=labels).astype(float) for part in counted)
    else:
        chosen = (scores >= np.asarray(evaluation.thresholds or 0.5)).astype(float)
        right, said, there = (chosen * targets).sum(0), chosen.sum(0), targets.sum(0)
    table: list[dict[str, Any]] = []
    for index, label in enumerate(evaluation.labels):
        precision, recall = right[index] / max(said[index], 1), right[index] / max(there[index], 1)
        f1 = 2 * right[index] / max(said[index] + there[index], 1)
        row = {"label": label, "pictures": int(there[index]), "precision": precision, "recall": recall, "f1": f1}
        table.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    if evaluation.task == "tag":
        for row, ap in zip(table, average_precisions(scores, targets), strict=True):
            row["ap"] = None if np.isnan(ap) else round(ap, 4)
        for row, threshold in zip(table, evaluation.thresholds or [], strict=False):
            row["threshold"] = threshold
    return table


def confusion_pairs(evaluation: Evaluation) -> Counter[tuple[int, int]]:
    """How many pictures of the first label were answered with the second, where any were."""
    answered = evaluation.scores.argmax(axis=1)
    return Counter(zip(evaluation.targets.tolist(), answered.tolist(), strict=True))


def confusion(evaluation: Evaluation) -> npt.NDArray[np.int64]:
    """``int64 [C, C]``: how many pictures of the row's label were answered with the column's."""
    counts = np.zeros((len(evaluation.labels),) * 2, np.int64)
    np.add.at(counts, (evaluation.targets, evaluation.scores.argmax(axis=1)), 1)
    return counts


def _draw_per_label(path: Path, table: list[dict[str, Any]], figure: str) -> None:
    from matplotlib.figure import Figure

    worst_first = sorted(table, key=lambda row: row[figure] or 0.0)[:60]
    drawing = Figure(figsize=(7, 1 + 0.22 * len(worst_first)), layout="constrained")
    axes = drawing.subplots()
    axes.barh(range(len(worst_first)), [row[figure] or 0.0 for row in worst_first])
    axes.set_yticks(range(len(worst_first)), [row["label"] for row in worst_first], **_AS_WRITTEN)
    shown = f"the worst {len(worst_first)} of {len(table)}" if len(worst_first) < len(table) else "all labels"
    axes.set(title=f"{figure}, {shown}", xlim=(0, 1))
    axes.invert_yaxis()
    drawing.savefig(path, dpi=100)


def _draw_calibration(path: Path, bins: list[Bin], error: float) -> None:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(5, 6), layout="constrained")
    above, below = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="grey", linestyle="dashed", label="perfect")
    above.plot([row.said for row in bins], [row.right for row in bins], marker="o", label="this model")
    above.set(title=f"calibration: error {error:.3f}", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    above.legend()
    width = bins[0].high - bins[0].low
    below.bar([row.low for row in bins], [row.decisions for row in bins], width=width, align="edge")
    below.set(xlabel="score", ylabel="decisions", yscale="log")
    drawing.savefig(path, dpi=100)


def _draw_confusion(path: Path, counts: npt.NDArray[np.int64], labels: list[str]) -> None:
    from matplotlib.figure import Figure

    few = len(labels) <= 40
    drawing = Figure(figsize=(1.5 + 0.45 * len(labels),) * 2 if few else (9, 9), layout="constrained")
    axes = drawing.subplots()
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set(title="confusion", xlabel="answered", ylabel="right")
    if few:
        axes.set_xticks(range(len(labels)), labels, rotation=90, **_AS_WRITTEN)
        axes.set_yticks(range(len(labels)), labels, **_AS_WRITTEN)
        for row, column in zip(*np.nonzero(counts), strict=True):
            dark = counts[row, column] > counts[row].sum() / 2
            axes.text(column, row, counts[row, column], ha="center", va="center", color="white" if dark else "black")
    drawing.savefig(path, dpi=100)
