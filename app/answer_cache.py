"""Answers by the pictures' bytes, so that the same picture is not decoded and computed again. Off by default.

No picture is kept, only its digest. What is kept is bounded in bytes; what nobody asked for the longest goes first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from app.catalogue import ServedModel
from app.metrics import Metrics
from app.parameters import Parameters
from app.triton import Prediction

Key = tuple[ServedModel, bytes, bool, bool]
_OVERHEAD_BYTES = 600
"""Of an entry beside its numbers: the key, the objects, their place among the others."""
_OVERHEAD_OF_A_MAP = 200


@dataclass(frozen=True)
class Seen:
    """A picture's size in pixels, upright, and what the model said of it."""

    width: int
    height: int
    prediction: Prediction

    @property
    def nbytes(self) -> int:
        """What it takes in memory, about."""
        known = self.prediction
        maps = known.heat_maps or {}
        embedding = 0 if known.embedding is None else known.embedding.nbytes
        return known.scores.nbytes + embedding + sum(each.nbytes + _OVERHEAD_OF_A_MAP for each in maps.values())

    def owned(self) -> Seen:
        """With numbers of its own, where they were a part of a whole batch's."""
        known = self.prediction
        maps = None if known.heat_maps is None else {label: each.copy() for label, each in known.heat_maps.items()}
        embedding = None if known.embedding is None else known.embedding.copy()
        return Seen(self.width, self.height, Prediction(known.scores.copy(), embedding, maps))


class AnswerCache:
    """At most ``max_bytes`` of answers; a model that is learnt anew begins without any."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._kept: OrderedDict[Key, Seen] = OrderedDict()
        self._bytes = 0

    def key(self, model: ServedModel, data: bytes, parameters: Parameters) -> Key | None:
        """What an answer is found again by; None where no answers are kept."""
        if self._max_bytes == 0:
            return None
        return model, hashlib.blake2b(data, digest_size=32).digest(), parameters.embedding, parameters.explain

    def find(self, key: Key | None) -> Seen | None:
        if key is None:
            return None
        seen = self._kept.get(key)
        if seen is not None:
            self._kept.move_to_end(key)
        self._metrics.answer_cache.labels("miss" if seen is None else "hit").inc()
        return seen

    def keep(self, key: Key | None, seen: Seen) -> None:
        if key is None or key in self._kept:  # two asked about the same at once
            return
        self._kept[key] = seen = seen.owned()
        self._bytes += seen.nbytes + _OVERHEAD_BYTES
        while self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes + _OVERHEAD_BYTES
