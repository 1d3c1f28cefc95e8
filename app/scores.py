"""From a model's scores to what a client asked of them: labels, tags, heat maps, the embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from app.catalogue import ServedModel
from app.errors import bad_parameter
from app.parameters import LONGEST_SHOWN, ClassifyParameters, Parameters, TagParameters
from app.triton import Prediction


def check_parameters(model: ServedModel, parameters: Parameters) -> None:
    """Raise 422 if the parameters ask for heat maps that the model does not give, or name a label that it has not."""
    if parameters.explain and model.contract.heat_maps is None:
        raise bad_parameter(f"model {model.contract.name!r} gives no heat maps, so explain must be false")
    if not isinstance(parameters, TagParameters):
        return
    named = [*(parameters.include_labels or []), *(parameters.exclude_labels or [])]
    unknown = sorted(set(named) - set(model.labels)) if named else []
    if unknown:
        shown = ", ".join(label[:LONGEST_SHOWN] for label in unknown[:5])
        raise bad_parameter(f"model {model.contract.name!r} has no label {shown}")


def read_scores(model: ServedModel, prediction: Prediction, parameters: Parameters) -> dict[str, Any]:
    """Scores to labels: the best few for ``/classify``, those over their threshold for ``/tag``."""
    scores = prediction.scores
    answer: dict[str, Any] = {}
    if isinstance(parameters, ClassifyParameters):
        answer["predictions"] = [
            {"label": model.labels[i], "label_id": int(i), "score": _shown(scores[i])}
            for i in _highest(scores, parameters.top_k)
            if scores[i] >= parameters.min_score
        ]
    elif isinstance(parameters, TagParameters):
        answer["tags"] = _tags(model, scores, parameters)
    if parameters.explain and prediction.heat_maps is not None:
        for entry in answer.get("predictions", answer.get("tags", [])):
            heat_map = prediction.heat_maps.get(entry["label_id"])
            entry["heat_map"] = None if heat_map is None else np.round(heat_map.astype(float), 4).tolist()
    if parameters.embedding and prediction.embedding is not None:
        answer["embedding"] = prediction.embedding.tolist()
    return answer


def _shown(score: float) -> float:
    """To six digits, about what a float32 holds; its further digits as a double would be noise."""
    return float(f"{score:.6g}")


def _sorted(indices: npt.NDArray[np.intp], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """``indices`` by their scores, the best first; of equals the first."""
    return indices[np.argsort(-scores[indices], kind="stable")]


def _highest(scores: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Where the ``count`` highest are, in order. To sort thousands of labels would take a millisecond."""
    count = min(count, len(scores))
    least = np.partition(scores, -count)[-count]
    return _sorted(np.flatnonzero(scores >= least), scores)[:count]


def _tags(model: ServedModel, scores: npt.NDArray[np.float32], parameters: TagParameters) -> list[dict[str, Any]]:
    thresholds = model.thresholds if parameters.threshold is None else np.full_like(scores, parameters.threshold)
    included = None if parameters.include_labels is None else set(parameters.include_labels)
    excluded = set(parameters.exclude_labels or [])
    tags = [
        {"label": model.labels[i], "label_id": int(i), "score": _shown(scores[i]), "threshold": _shown(thresholds[i])}
        for i in _sorted(np.flatnonzero(scores >= thresholds), scores)
        if (included is None or model.labels[i] in included) and model.labels[i] not in excluded
    ]
    return tags[: parameters.max_tags]
