"""What lies in a model repository on disk, read without a server: each version's contract, or what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tresnet.contract import (
    CONFIG_FILE,
    EMBEDDED_CODE_FILE,
    EMBEDDED_CONFIG_FILE,
    LABELS_FILE,
    PROGRAM_FILES,
    ContractError,
    ModelContract,
    labels_digest,
    read_contract,
)  # fmt: skip
from tresnet.errors import UserError


@dataclass(frozen=True)
class StoredVersion:
    """A version's folder; ``version`` is empty where the whole model is at fault."""

    model: str
    version: str
    contract: ModelContract | None = None
    labels: tuple[str, ...] = ()
    fault: str | None = None

    def as_served(self) -> dict[str, Any]:
        """In the form of the gateway's ``/models``, but for what only a gateway knows: whether it is a default."""
        assert self.contract is not None  # noqa: S101
        return {**self.contract.listed(), "labels": list(self.labels)}

    def told_fault(self) -> str | None:
        """What is wrong, after the names of the model and the version; None if nothing is."""
        return None if self.fault is None else f"{self.model} {self.version}".strip() + f": {self.fault}"


def read_repository(folder: Path) -> list[StoredVersion]:
    """Every version of every model, by name and number.

    Raises:
        UserError: if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model repository; `tresnet export` makes one")
    models = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [version for model in models for version in _read_model(model)]


def _read_model(model: Path) -> list[StoredVersion]:
    try:
        config = text_format.Parse((model / CONFIG_FILE).read_text(encoding="utf-8"), pb.ModelConfig())
        text_format.Parse((model / EMBEDDED_CONFIG_FILE).read_text(encoding="utf-8"), pb.ModelConfig())
        labels = tuple((model / LABELS_FILE).read_text(encoding="utf-8").splitlines())
    except OSError as error:
        return [StoredVersion(model.name, "", fault=f"{error.filename}: {error.strerror}")]
    except (text_format.ParseError, UnicodeDecodeError) as error:
        return [StoredVersion(model.name, "", fault=f"a file of its configuration cannot be read: {error}")]
    numbers = sorted(int(entry.name) for entry in model.iterdir() if entry.name.isdecimal() and entry.is_dir())
    if not numbers:
        return [StoredVersion(model.name, "", fault="it has no version")]
    return [_read_version(model, str(number), config, labels) for number in numbers]


def _read_version(model: Path, version: str, config: pb.ModelConfig, labels: tuple[str, ...]) -> StoredVersion:
    try:
        contract = read_contract(config, version)
    except ContractError as error:
        return StoredVersion(model.name, version, fault=str(error))
    fault = None
    program = PROGRAM_FILES.get(config.platform, "its program")
    missing = [name for name in (program, EMBEDDED_CODE_FILE) if not (model / version / name).is_file()]
    if missing:
        fault = f"{' and '.join(missing)} is missing"
    elif contract.name != model.name:
        fault = f"its configuration calls it {contract.name!r}"
    elif labels_digest(list(labels)) != contract.labels_sha256:
        fault = f"{LABELS_FILE} is not the one it was exported with"
    return StoredVersion(model.name, version, contract, labels, fault)
