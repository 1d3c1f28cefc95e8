"""A model's figures on labelled pictures, its calibration, and the tables and plots that show them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from training.data import EVALUATION_BATCH, all_targets, evaluation_batches, load_data
from training.distributed import World
from training.metrics import (
    Logits,
    Scores,
    average_precisions,
    best_temperature,
    best_thresholds,
    evaluate_scores,
    expected_calibration_error,
    to_scores,
)
from training.pictures import Pictures, open_pictures
from training.recipes import find_recipe
from tresnet.checkpoint import Checkpoint, ModelFacts, build_model
from tresnet.contract import Task
from tresnet.errors import UserError
from tresnet.model import TResNet
from tresnet.picture import Preprocessing


@dataclass(frozen=True)
class Evaluation:
    """What a model answered to labelled pictures, and what that is worth."""

    task: Task
    labels: list[str]
    scores: Scores  # [N, C], calibrated
    targets: npt.NDArray[Any]  # [N] or [N, C]
    thresholds: list[float] | None
    figures: dict[str, float]


@torch.inference_mode()
def predict(
    model: TResNet, pictures: Pictures, how: Preprocessing, world: World, *, tags: bool, workers: int = 0
) -> Logits:
    """``float32 [N, C]`` logits of all pictures in every process; each works on its share of the batches."""
    model.eval()
    own = [
        model(to_input(batch.to(world.device))).float().cpu().numpy()
        for batch, _ in evaluation_batches(pictures, how, workers, world, tags=tags)
    ]
    parts = world.gather(own)
    batches = -(-len(pictures) // EVALUATION_BATCH)
    return np.concatenate([parts[index % world.size][index // world.size] for index in range(batches)])


def to_input(pictures: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    """``uint8 [N, S, S, 3]`` pictures to ``float32 [N, 3, S, S]`` in 0..1."""
    return pictures.permute(0, 3, 1, 2).contiguous(memory_format=memory_format).float() / 255


def calibrate(facts: ModelFacts, logits: Logits, targets: npt.NDArray[Any]) -> ModelFacts:
    """``facts`` with the temperature and, for tags, the thresholds that fit held-out logits best."""
    temperature = best_temperature(facts.task, logits, targets)
    thresholds = None
    if facts.task == "tag":
        thresholds = best_thresholds(to_scores("tag", logits, temperature), targets)
    return facts.model_copy(update={"temperature": temperature, "thresholds": thresholds})


def judge(facts: ModelFacts, logits: Logits, targets: npt.NDArray[Any]) -> Evaluation:
    """The figures of a model's logits; ``ece_raw`` is the calibration error without the temperature."""
    task, scores = facts.task, to_scores(facts.task, logits, facts.temperature)
    figures = evaluate_scores(task, scores, targets, facts.thresholds)
    figures["ece"] = expected_calibration_error(task, scores, targets)
    figures["ece_raw"] = expected_calibration_error(task, to_scores(task, logits), targets)
    return Evaluation(task, facts.labels, scores, targets, facts.thresholds, figures)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    world: World,
    *,
    where: str | None = None,
    pictures: Pictures | None = None,
    image_size: int | None = None,
    workers: int = 0,
) -> Evaluation:
    """Judge a checkpoint on ``pictures``, on those at ``where``, or on its recipe's own held-out ones.

    Of several splits it is ``test``, else ``val``.

    Raises:
        UserError: if the data cannot be used.
    """
    facts = checkpoint.facts
    tags = facts.task == "tag"
    how = facts.preprocessing
    if image_size is not None:
        try:
            how = how.model_validate(how.model_dump() | {"image_size": image_size})
        except ValidationError as error:
            raise UserError(f"an image size of {image_size} cannot be: {error.errors()[0]['msg']}") from error
    if pictures is None:
        pictures = _held_out(checkpoint, where)
    pictures = pictures.relabelled(facts.labels)
    if not tags and any(len(target) != 1 for target in pictures.targets):
        raise UserError("the data has pictures without a label or with several, and the checkpoint gives one label")
    model = build_model(checkpoint).to(world.device)
    logits = predict(model, pictures, how, world, tags=tags, workers=workers)
    return judge(facts, logits, all_targets(pictures, tags=tags))


def _held_out(checkpoint: Checkpoint, where: str | None) -> Pictures:
    if where is not None:
        splits = open_pictures(where)
        return next(splits[name] for name in ("test", "val", "all", *splits) if name in splits)
    facts = checkpoint.facts
    if facts.recipe is None:
        raise UserError(f"{checkpoint.path} does not say what it was trained on: give --data DIR")
    return load_data(find_recipe(facts.recipe), facts.preprocessing, facts.seed or 0, None).test


def write_report(folder: Path, evaluation: Evaluation) -> None:
    """``per_label.json`` and ``.png`` and, where one label wins, ``confusion.json`` and ``.png``, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    table = per_label_table(evaluation)
    (folder / "per_label.json").write_text(json.dumps(table, indent=1) + "\n")
    _draw_per_label(folder / "per_label.png", table, "recall" if evaluation.task == "classify" else "ap")
    if evaluation.task == "classify":
        counts = confusion(evaluation)
        content = {"labels": evaluation.labels, "counts": counts.tolist(), "rows": "right", "columns": "answered"}
        (folder / "confusion.json").write_text(json.dumps(content) + "\n")
        _draw_confusion(folder / "confusion.png", counts, evaluation.labels)


def per_label_table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """For each label its pictures, precision, recall and F1, and for tags its average precision and threshold."""
    scores, targets = evaluation.scores, evaluation.targets
    if evaluation.task == "classify":
        chosen = np.eye(scores.shape[1])[scores.argmax(axis=1)]
        wanted = np.eye(scores.shape[1])[targets]
    else:
        chosen, wanted = (scores >= np.asarray(evaluation.thresholds or 0.5)).astype(float), targets
    right, said, there = (chosen * wanted).sum(0), chosen.sum(0), wanted.sum(0)
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
    axes.set_yticks(range(len(worst_first)), [row["label"] for row in worst_first])
    shown = f"the worst {len(worst_first)} of {len(table)}" if len(worst_first) < len(table) else "all labels"
    axes.set(title=f"{figure}, {shown}", xlim=(0, 1))
    axes.invert_yaxis()
    drawing.savefig(path, dpi=100)


def _draw_confusion(path: Path, counts: npt.NDArray[np.int64], labels: list[str]) -> None:
    from matplotlib.figure import Figure

    few = len(labels) <= 40
    drawing = Figure(figsize=(1.5 + 0.45 * len(labels),) * 2 if few else (9, 9), layout="constrained")
    axes = drawing.subplots()
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set(title="confusion", xlabel="answered", ylabel="right")
    if few:
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        for row, column in zip(*np.nonzero(counts), strict=True):
            dark = counts[row, column] > counts[row].sum() / 2
            axes.text(column, row, counts[row, column], ha="center", va="center", color="white" if dark else "black")
    drawing.savefig(path, dpi=100)
