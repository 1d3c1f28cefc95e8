"""The way of a checkpoint into the model repository, in one function."""

from __future__ import annotations

import copy
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

import tresnet
from export.card import version_card
from export.golden import golden_picture
from export.program import Normalisation, can_map, eager_program, serving_program
from export.program_file import write_torch_aoti, write_torchscript
from export.repository import check_agrees, check_name, choose_version, device_kind, known_contract, publish
from export.verify import Verified, heat_maps_of, verify_program
from tresnet.checkpoint import Checkpoint, CheckpointError, build_model
from tresnet.contract import ModelContract, VersionFacts, labels_digest
from tresnet.model import VARIANTS
from tresnet.picture import Preprocessing
from tresnet.terms import Precision, ProgramFormat, Task


@dataclass(frozen=True)
class ExportRequest:
    """What to publish, and how."""

    checkpoint: Checkpoint
    name: str
    task: Task
    repository: Path
    version: int | None
    labels: list[str]
    preprocessing: Preprocessing
    normalisation: Normalisation
    precision: Precision
    max_batch_size: int
    format: ProgramFormat
    device: torch.device
    """Where the program is verified, and what ``torch_aoti`` is compiled for."""
    card: str | None = None
    """The user's own model card, in Markdown, in place of the checkpoint's."""


@dataclass(frozen=True)
class Exported:
    """Where the version is, what it promises, and what verifying it measured."""

    folder: Path
    contract: ModelContract
    verified: Verified


def export_checkpoint(request: ExportRequest) -> Exported:
    """Convert, verify, publish.

    Raises:
        CheckpointError: if the checkpoint does not fit its architecture or the request.
        RepositoryError: if the repository cannot take this version.
        CompilationError: if the format has to be compiled and cannot be.
        VerificationError: if the program's scores disagree with the network's.
        OSError: if the repository cannot be written.
    """
    check_name(request.name)
    facts = request.checkpoint.facts
    if facts.task != request.task:
        raise CheckpointError(f"{request.checkpoint.path} was trained to {facts.task}, not to {request.task}")
    network = build_model(request.checkpoint)
    known = known_contract(request.repository / request.name)
    # A model's versions share one configuration: a model that was published without heat maps goes on without.
    heat_maps = can_map(network) and (known is None or known.heat_maps is not None)
    reading = request.task, request.normalisation, facts.temperature
    eager = eager_program(copy.deepcopy(network), *reading, heat_maps=heat_maps)
    how = request.preprocessing
    contract = ModelContract(
        name=request.name,
        version=str(choose_version(request.repository / request.name, request.version)),
        task=request.task,
        preprocessing=how,
        num_labels=len(request.labels),
        embedding_size=VARIANTS[facts.arch].num_features,
        heat_maps=heat_maps_of(eager, how.image_size),
        max_batch_size=request.max_batch_size,
        labels_sha256=labels_digest(request.labels),
        facts=VersionFacts(
            architecture=facts.arch,
            precision=request.precision,
            source_sha256=request.checkpoint.sha256,
            tools={"tresnet": tresnet.__version__, "torch": torch.__version__, "python": platform.python_version()},
            temperature=facts.temperature,
            thresholds=facts.thresholds,
            golden=golden_picture(eager, how),
            card=version_card(request.checkpoint, request.card, request.labels, how, request.precision),
        ),
    )
    kind = device_kind(request.format, request.device)
    check_agrees(request.repository / request.name, contract, request.format, kind)  # before the long part
    verified: list[Verified] = []

    def write_and_verify(path: Path) -> None:
        program = serving_program(network, *reading, request.precision, heat_maps=heat_maps)
        if request.format == "torch_aoti":
            write_torch_aoti(program, path, how.image_size, request.max_batch_size, request.device)
        else:
            write_torchscript(program, path)
        verified.append(
            verify_program(path, eager, how.image_size, request.max_batch_size, request.precision, request.device)
        )

    folder = publish(
        request.repository,
        contract,
        request.labels,
        write_and_verify,
        request.format,
        kind,
        or_next_version=request.version is None,
    )
    return Exported(folder, contract.model_copy(update={"version": folder.name}), verified[0])
