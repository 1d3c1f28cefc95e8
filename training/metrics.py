"""Figures that say how good a model is, from scores and targets as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]


def top_k_accuracy(scores: Scores, classes: npt.NDArray[np.int64], k: int) -> float:
    """Share of rows of ``[N, C]`` scores whose right class is among the ``k`` highest."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == classes[:, None]).any(axis=1).mean())


def average_precision(scores: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
    """Non-interpolated average precision of one label: the mean precision at each positive's rank (ASL's)."""
    ranked = targets[np.argsort(-scores, kind="stable")]
    positives = np.cumsum(ranked)
    if positives[-1] == 0:
        return float("nan")
    precision = positives / np.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / positives[-1])


def mean_average_precision(scores: Scores, targets: npt.NDArray[np.float32]) -> float:
    """The mean over labels that occur, of ``[N, C]`` scores and 0/1 targets."""
    return float(np.nanmean([average_precision(scores[:, c], targets[:, c]) for c in range(scores.shape[1])]))


def micro_f1(scores: Scores, targets: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float64] | float) -> float:
    """F1 over all decisions together (OF1)."""
    chosen = scores >= thresholds
    right = float((chosen * targets).sum())
    return 2 * right / max(1.0, float(chosen.sum() + targets.sum()))


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
        thresholds.append(round(float((ranked[best] + below) / 2), 4))
    return thresholds


def evaluate_scores(
    task: str, scores: Scores, targets: npt.NDArray[Any], thresholds: list[float] | None
) -> dict[str, float]:
    """The figures that belong to ``task``."""
    if task == "classify":
        return {"top1": top_k_accuracy(scores, targets, 1), "top5": top_k_accuracy(scores, targets, 5)}
    figures = {"map": mean_average_precision(scores, targets), "f1_at_0.5": micro_f1(scores, targets, 0.5)}
    if thresholds is not None:
        figures["f1"] = micro_f1(scores, targets, np.asarray(thresholds))
    return figures
