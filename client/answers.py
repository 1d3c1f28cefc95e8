"""From the gateway's JSON to frozen objects. What a newer gateway adds is passed over, and kept in ``document``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Where a label's logit comes from: signed numbers whose mean, plus the label's bias, is the logit."""

    rows: tuple[tuple[float, ...], ...]
    box: tuple[float, float, float, float]
    """The part of the upright picture that the map covers, in pixels: left, top, right, bottom."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of the best labels of ``/classify``."""

    label: str
    label_id: int
    score: float
    heat_map: HeatMap | None = None
    """With ``explain=True``, for the 32 labels of the highest scores."""


@dataclass(frozen=True, slots=True)
class Tag:
    """One of the labels of ``/tag`` whose score reached its threshold."""

    label: str
    label_id: int
    score: float
    threshold: float
    heat_map: HeatMap | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a picture has no answer. ``status`` is 0 where the picture never left this machine."""

    status: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Result:
    """What one picture got: predictions or tags, or an error."""

    id: str
    """The picture's place among those that were given, counted from 0."""
    width: int = 0
    height: int = 0
    predictions: tuple[Prediction, ...] = ()
    tags: tuple[Tag, ...] = ()
    embedding: tuple[float, ...] | None = None
    error: Problem | None = None
    source: str | None = None
    """The picture's path, if it was given by one."""
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The result as the gateway wrote it."""

    @property
    def is_ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class Model:
    """Who answered."""

    name: str
    version: str
    task: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One result for each picture, in order."""

    request_id: str
    model: Model
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is ready, as ``/models`` describes it."""

    name: str
    version: str
    task: str
    image_size: int
    labels: tuple[str, ...]
    document: Mapping[str, Any] = field(repr=False, compare=False)
    """Its whole contract."""


def read_answer(document: Mapping[str, Any], first: int = 0) -> Answer:
    """``first`` is the place of the request's first picture.

    Raises:
        KeyError, TypeError, ValueError: if it is no answer of ``/classify`` or ``/tag``.
    """
    model = document["model"]
    return Answer(
        str(document["request_id"]),
        Model(model["name"], model["version"], model["task"]),
        tuple(read_result(result, str(first + index)) for index, result in enumerate(document["results"])),
    )


def read_result(document: Mapping[str, Any], identifier: str) -> Result:
    document = {**document, "id": identifier}
    if document["status"] != "ok":
        error = document["error"]
        return Result(
            identifier, error=Problem(error["status"], error["code"], error["detail"]), document=document
        )  # fmt: skip
    box = document.get("heat_map_box")
    return Result(
        identifier,
        document["width"],
        document["height"],
        tuple(
            Prediction(entry["label"], entry["label_id"], entry["score"], _heat_map(entry, box))
            for entry in document.get("predictions", ())
        ),
        tuple(
            Tag(entry["label"], entry["label_id"], entry["score"], entry["threshold"], _heat_map(entry, box))
            for entry in document.get("tags", ())
        ),
        tuple(document["embedding"]) if "embedding" in document else None,
        document=document,
    )


def failed_result(identifier: str, problem: Problem) -> Result:
    """A result for a picture that has none of its own."""
    error = {"status": problem.status, "code": problem.code, "detail": problem.detail}
    return Result(identifier, error=problem, document={"id": identifier, "status": "error", "error": error})


def read_models(document: Mapping[str, Any]) -> list[ServedModel]:
    return [
        ServedModel(
            model["name"],
            model["version"],
            model["task"],
            model["preprocessing"]["image_size"],
            tuple(model["labels"]),
            model,
        )
        for model in document["models"]
    ]


def _heat_map(entry: Mapping[str, Any], box: Any) -> HeatMap | None:
    rows = entry.get("heat_map")
    if rows is None or box is None:
        return None
    left, top, right, bottom = box
    return HeatMap(tuple(tuple(row) for row in rows), (left, top, right, bottom))
