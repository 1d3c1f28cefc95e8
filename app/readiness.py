"""From what Triton says of its repository to whether the service is ready, and if not, why. Asks nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2 as pb

from app.catalogue import Key
from app.triton import IndexRow
from tresnet.contract import FAILED_VERSIONS


@dataclass(frozen=True)
class Standing:
    """Triton's repository, read: what is there, what ought to serve, what failed."""

    known: dict[str, set[str]]
    """The models, and of each the versions that serve or should."""
    wanted: set[str]
    """Models that are loaded or being loaded, or failed to."""
    failed: dict[Key, str]
    """Versions that cannot be served, and why."""

    def problems(self, live: set[str], served: set[str]) -> list[str]:
        """Why the service is not ready; ``live`` are the models that answer now, ``served`` those that ever did.

        At the start every model must answer. Later a publication that fails takes nothing out of service: only a
        model that was served and is still loaded, or loading, has to be.
        """
        missing = (self.wanted & served if served else self.wanted) - live
        problems = [not_ready(name, self.failed) for name in sorted(missing)]
        if not live and not problems:
            problems = ["no model is loaded"] if self.known else ["the model repository is empty"]
        return problems


def read_index(
    index: list[IndexRow],
    configs: Mapping[str, pb.ModelConfig | None],
    *,
    served: set[str],
    disproved: dict[Key, str],
) -> Standing:
    """``served`` are the models that ever answered, ``disproved`` the loaded versions that failed their proof."""
    known: dict[str, set[str]] = {}
    wanted: set[str] = set()
    failed = dict(disproved)
    for name, version, state, reason in index:
        if name.startswith("."):  # what a cut-off export left behind
            continue
        versions = known.setdefault(name, set())
        if state in ("LOADING", "READY"):
            wanted.add(name)
            versions.add(version)
        elif not state:  # in the repository; a Triton that has just started has not begun to load it
            wanted.update({name} & served)
        elif state == "UNAVAILABLE" and reason not in ("", "unloaded"):
            wanted.add(name)
            if _is_failed(version, configs.get(name)):
                failed[name, version] = reason.splitlines()[0]
                versions.add(version)
    return Standing(known, wanted, failed)


def not_ready(name: str, failed: Mapping[Key, str]) -> str:
    """In a sentence, with the reasons of the versions that failed."""
    reasons = [f"version {version}: {reason}" for (model, version), reason in sorted(failed.items()) if model == name]
    return f"model {name!r} is not ready" + (f": {'; '.join(reasons)}" if reasons else " yet")


def _is_failed(version: str, config: pb.ModelConfig | None) -> bool:
    """Whether a version that Triton could not load is still in the repository.

    Triton's index goes on naming one that was removed; who drives its model control knows better.
    """
    if config is None or FAILED_VERSIONS not in config.parameters:
        return True
    return version in config.parameters[FAILED_VERSIONS].string_value.split(",")
