"""Scores to labels: which, and in what order, equal scores among them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.catalogue import ServedModel
from app.parameters import ClassifyParameters, TagParameters
from app.scores import read_scores
from app.triton import Prediction

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40)


def model(scores: list[float]) -> ServedModel:
    count = len(scores)
    facts = SimpleNamespace(thresholds=None)
    contract = SimpleNamespace(num_labels=count, facts=facts)
    return ServedModel(cast("Any", contract), [f"label {i}" for i in range(count)], cast("Any", None))


@given(SCORES, st.integers(1, 50))
def test_the_best_come_first_and_equals_by_their_label(scores: list[float], top_k: int) -> None:
    prediction = Prediction(np.array(scores, np.float32))
    found = read_scores(model(scores), prediction, ClassifyParameters(top_k=top_k))["predictions"]
    by_hand = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:top_k]
    assert [entry["label_id"] for entry in found] == by_hand


@given(SCORES, st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]))
def test_tags_reach_their_threshold_and_the_best_come_first(scores: list[float], threshold: float | None) -> None:
    prediction = Prediction(np.array(scores, np.float32))
    found = read_scores(model(scores), prediction, TagParameters(threshold=threshold))["tags"]
    least = 0.5 if threshold is None else threshold
    by_hand = sorted((i for i in range(len(scores)) if scores[i] >= least), key=lambda i: (-scores[i], i))
    assert [entry["label_id"] for entry in found] == by_hand
    assert all(entry["threshold"] == least for entry in found)
