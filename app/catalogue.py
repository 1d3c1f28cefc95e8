"""Which model versions are served now, and which of them a request means.

What is in here was put in by :mod:`app.model_watch`, which has it from Triton alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from app.batching import Batcher
from app.errors import ModelNotReadyError, RequestError, ServiceError, TritonAwayError, bad_parameter
from app.parameters import LONGEST_SHOWN
from app.triton import Prediction
from tresnet.contract import ModelContract
from tresnet.terms import Task

_NAMED_AT_ONCE = 20

Key = tuple[str, str]
"""A model's name and a version."""


@dataclass(frozen=True)
class Picture:
    """A prepared picture on its way to Triton, and what is asked of it."""

    pixels: npt.NDArray[np.uint8]
    traceparent: str | None = None
    wants_embedding: bool = False
    wants_heat_maps: bool = False


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A live version of a model: its contract, its labels, its batcher. Learnt anew, it is another one."""

    contract: ModelContract
    labels: list[str]
    batcher: Batcher[Picture, Prediction]

    @cached_property
    def thresholds(self) -> npt.NDArray[np.float32]:
        """``float32 [C]``: each label's own, else 0.5."""
        own = self.contract.facts.thresholds
        return np.full(self.contract.num_labels, 0.5, np.float32) if own is None else np.array(own, np.float32)


@dataclass
class Catalogue:
    """The live versions, those that failed, and why the gateway is not ready if it is not."""

    defaults: tuple[str, ...] = ()
    """Names of models for requests that name none, the preferred ones first."""
    live: dict[Key, ServedModel] = field(default_factory=dict)
    failed: dict[Key, str] = field(default_factory=dict)
    known: dict[str, set[str]] = field(default_factory=dict)
    """The models in Triton's repository, and of each the versions that serve or should."""
    tasks: dict[str, Task] = field(default_factory=dict)
    """Of every model that ever was live."""
    problems: list[str] = field(default_factory=lambda: ["the inference server has not been reached yet"])
    triton_is_up: bool = False
    was_ready: bool = False
    """Whether it was ready once."""

    @property
    def is_ready(self) -> bool:
        """Whether every model that ought to be live is."""
        return self.triton_is_up and bool(self.live) and not self.problems

    @property
    def is_of_use(self) -> bool:
        """Whether a model is live, and all were at some time: not while the first of them come to live."""
        return self.triton_is_up and bool(self.live) and (self.was_ready or not self.problems)

    @property
    def live_names(self) -> set[str]:
        return {name for name, _ in self.live}

    def lose_triton(self, why: str) -> None:
        """Nothing is live until Triton was seen whole again."""
        self.triton_is_up = False
        self.live, self.failed, self.problems = {}, {}, [why]

    def find(self, task: Task, name: str | None, version: str | None) -> ServedModel:
        """The live model that a request means; without a name, a default or the only one of the route's task.

        Raises:
            TritonAwayError: if none was there at the last look.
            ModelNotReadyError: if the model is not live now.
            RequestError: 404 for an unknown model or version, 422 for one of the other task or for no choice.
        """
        if not self.triton_is_up:
            raise TritonAwayError
        model = self.named(self._default(task) if name is None else name, version)
        if model.contract.task != task:
            raise bad_parameter(f"model {name!r} is for /{model.contract.task}, not for /{task}")
        return model

    def is_default(self, model: ServedModel) -> bool:
        """Whether it answers a request of its task that names no model."""
        try:
            return self.find(model.contract.task, None, None) is model
        except ServiceError:
            return False

    def _default(self, task: Task) -> str:
        """The model for a request that names none.

        Raises:
            ModelNotReadyError: if it is not live now; no model steps in that the operator did not choose.
            RequestError: 404 if no model is of the task, 422 if the choice is the client's.
        """
        names = sorted({model.contract.name for model in self.live.values() if model.contract.task == task})
        for name in self.defaults:
            if name in names:
                return name
        unsure = task if self.problems else None  # after a start, a default that never came to live stops nobody
        for name in self.defaults:
            is_away = name in (self.known.keys() | self.tasks.keys()) - self.live_names
            if is_away and self.tasks.get(name, unsure) == task:
                if name not in self.known:
                    detail = f"model {name!r}, which answers /{task} by default, is gone: name another by 'model'"
                    raise ModelNotReadyError(detail)
                raise ModelNotReadyError.of(name)
        if not names:
            if self.problems or self.known.keys() - self.live_names:
                raise ModelNotReadyError(f"no model for /{task} is ready; try again")
            raise RequestError(404, "unknown_model", f"no model for /{task} is served")
        if len(names) > 1:
            raise RequestError(
                422, "model_required", f"choose a model for /{task} by the parameter 'model': {', '.join(names)}"
            )
        return names[0]

    def named(self, name: str, version: str | None) -> ServedModel:
        """The live model of this name; without a version, the highest.

        Raises:
            TritonAwayError: if none was there at the last look.
            ModelNotReadyError: if the model is not live now.
            RequestError: 404 for an unknown model or version.
        """
        if not self.triton_is_up:
            raise TritonAwayError
        versions = {key[1]: model for key, model in self.live.items() if key[0] == name}
        if not versions:
            if name in self.known:
                raise ModelNotReadyError.of(name)
            raise RequestError(
                404, "unknown_model", f"there is no model {name[:LONGEST_SHOWN]!r}; {_choice(sorted(self.live_names))}"
            )
        if version is not None and version not in versions:
            if version in self.known.get(name, ()):
                why = self.failed.get((name, version))
                instead = f": {why}" if why else "; try again"
                raise ModelNotReadyError(f"model {name!r} version {version} is not ready{instead}")
            raise RequestError(
                404,
                "unknown_version",
                f"model {name!r} has no version {version[:LONGEST_SHOWN]!r}; {_choice(sorted(versions, key=int))}",
            )
        return versions[version or max(versions, key=int)]


def _choice(names: Sequence[str]) -> str:
    """Those that there are, as long as one can read them."""
    if len(names) > _NAMED_AT_ONCE:
        return f"GET /models lists the {len(names)} that are served"
    return f"served: {', '.join(names)}" if names else "none is served"
