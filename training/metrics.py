"""Figures that say how good a model is, from scores and targets as arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from tresnet.terms import Task

Scores = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]


def to_scores(task: Task, logits: Logits, temperature: float = 1.0) -> Scores:
    """``[N, C]`` logits to scores in 0..1: softmax over the labels, or each label's own sigmoid."""
    scaled = torch.from_numpy(logits) / temperature
    return (torch.softmax(scaled, dim=1) if task == "classify" else torch.sigmoid(scaled)).numpy()


def top_k_accuracy(scores: Scores, classes: npt.NDArray[np.int64], k: int) -> float:
    """Share of rows of ``[N, C]`` scores whose right class is among the ``k`` highest; of equals the first counts."""
    right = scores[np.arange(len(scores)), classes][:, None]
    is_before = (scores > right) | ((scores == right) & (np.arange(scores.shape[1]) < classes[:, None]))
    return float((is_before.sum(axis=1) < k).mean())


def average_precision(scores: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
    """Non-interpolated average precision of one label: the mean precision at each positive's rank (ASL's)."""
    ranked = targets[np.argsort(-scores, kind="stable")]
    positives = np.cumsum(ranked)
    if positives[-1] == 0:
        return float("nan")
    precision = positives / np.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / positives[-1])


def average_precisions(scores: Scores, targets: npt.NDArray[np.float32]) -> list[float]:
    """Of each label; not-a-number for one that does not occur."""
    return [average_precision(scores[:, c], targets[:, c]) for c in range(scores.shape[1])]


def mean_average_precision(scores: Scores, targets: npt.NDArray[np.float32]) -> float:
    """The mean over labels that occur, of ``[N, C]`` scores and 0/1 targets; not-a-number if none does."""
    precisions = np.asarray(average_precisions(scores, targets))
    return _mean(precisions[~np.isnan(precisions)])


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def precision_recall_f1(
    scores: Scores, targets: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float64] | float
) -> dict[str, float]:
    """ASL's six: ``cp``, ``cr``, ``cf1`` are means over the labels, ``op``, ``or``, ``of1`` over all decisions.

    A label that is never chosen has precision 0, as there. ``cf1`` is of the two means. The means are not-a-number if
    no label occurs.
    """
    chosen = scores >= thresholds
    right, said, there = (chosen * targets).sum(0), chosen.sum(0), targets.sum(0)
    occurs = there > 0
    cp = _mean(right[occurs] / np.maximum(said[occurs], 1))
    cr = _mean(right[occurs] / there[occurs])
    op, or_ = float(right.sum() / max(said.sum(), 1)), float(right.sum() / max(there.sum(), 1))
    f1 = [2 * p * r / (p + r) if p + r else 0.0 for p, r in ((cp, cr), (op, or_))]
    return {"cp": cp, "cr": cr, "cf1": f1[0], "op": op, "or": or_, "of1": f1[1]}


def micro_f1(scores: Scores, targets: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float64] | float) -> float:
    """F1 over all decisions together (OF1)."""
    return precision_recall_f1(scores, targets, thresholds)["of1"]


def best_thresholds(scores: Scores, targets: npt.NDArray[np.float32]) -> list[float]:
    """For each label the threshold with the highest F1, halfway between the two scores it separates."""
    thresholds = []
    for c in range(scores.shape[1]):
        order = np.argsort(-scores[:, c], kind="stable")
        ranked, right = scores[order, c].astype(np.float64), np.cumsum(targets[order, c])
        if right[-1] == 0:
            thresholds.append(0.5)
            continue
        f1 = 2 * right / (np.arange(1, len(ranked) + 1) + right[-1])
        f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # equal scores cannot be separated
        best = int(f1.argmax())
        below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
        thresholds.append(_between(float(below), float(ranked[best])))
    return thresholds


def _between(below: float, score: float) -> float:
    """Halfway, with four digits or as many as keep it above ``below`` and at most ``score``, as float32, too."""
    rounded = (round((below + score) / 2, digits) for digits in range(4, 17))
    return next((threshold for threshold in rounded if below < np.float32(threshold) <= score), score)


def best_temperature(task: Task, logits: Logits, targets: npt.NDArray[Any]) -> float:
    """What to divide logits by so that scores are probabilities: the least negative log-likelihood (Guo et al., 2017).

    ``targets`` are ``int64 [N]`` classes or 0/1 ``[N, C]``. A prior (log-normal, σ = 1) holds it near 1 where there are
    few of them: a dozen pictures that are all right would have every score be 1.
    """
    exact, right = torch.from_numpy(logits).double(), torch.from_numpy(targets)

    def loss(log_temperature: float) -> float:
        scaled = exact / np.exp(log_temperature)
        prior = 0.5 * log_temperature**2 / targets.size
        if task == "classify":
            return prior + float(F.cross_entropy(scaled, right))
        return prior + float(F.binary_cross_entropy_with_logits(scaled, right.double()))

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return round(float(np.exp(found.x)), 4)


def expected_calibration_error(task: Task, scores: Scores, targets: npt.NDArray[Any], bins: int = 15) -> float:
    """The mean distance between what a score says and how often it is right, over equal bins weighed by their size.

    ``classify``: the best label's score. ``tag``: every label's, a decision each.
    """
    rows = reliability(task, scores, targets, bins)
    return sum(row.decisions * abs(row.said - row.right) for row in rows) / sum(row.decisions for row in rows)


class Bin(NamedTuple):
    """The decisions whose score lies in ``low`` to ``high``: what they said on average, and the share that is right."""

    low: float
    high: float
    decisions: int
    said: float
    right: float


def reliability(task: Task, scores: Scores, targets: npt.NDArray[Any], bins: int = 15) -> list[Bin]:
    """The bins of :func:`expected_calibration_error` that are not empty, from the lowest scores up."""
    if task == "classify":
        said = scores.max(axis=1).astype(np.float64)
        right = (scores.argmax(axis=1) == targets).astype(np.float64)
    else:
        said, right = scores.ravel().astype(np.float64), targets.ravel().astype(np.float64)
    place = np.minimum((said * bins).astype(int), bins - 1)
    return [
        Bin(b / bins, (b + 1) / bins, int((place == b).sum()), said[place == b].mean(), right[place == b].mean())
        for b in np.unique(place).tolist()
    ]


def evaluate_scores(
    task: Task, scores: Scores, targets: npt.NDArray[Any], thresholds: list[float] | None = None
) -> dict[str, float]:
    """The figures that belong to ``task``; of ASL's six those at 0.5, and ``f1`` is OF1 at the fitted thresholds."""
    if task == "classify":
        return {"top1": top_k_accuracy(scores, targets, 1), "top5": top_k_accuracy(scores, targets, 5)}
    figures = {"map": mean_average_precision(scores, targets), **precision_recall_f1(scores, targets, 0.5)}
    if thresholds is not None:
        figures["f1"] = micro_f1(scores, targets, np.asarray(thresholds))
    return figures
