"""The contract that travels with a model: written by export into Triton's configuration, read back from it.

Everything a caller must know to prepare a picture and to read the scores is in one Triton ``ModelConfig``:
sizes in the tensors' shapes, the rest in ``parameters``. What holds for the model is one parameter each; what
holds for one version is one JSON parameter ``version.<N>``. The labels themselves are Triton's
(``labels.txt``, the output's ``label_filename``); the contract has their digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, TypeAdapter, ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from tresnet.picture import Preprocessing
from tresnet.terms import Interpolation, Precision, ProgramFormat, ResizeMode, Task

CONTRACT_VERSION = "1"
INPUT = "INPUT__0"
SCORES = "OUTPUT__0"
EMBEDDING = "OUTPUT__1"
HEAT_MAPS = "OUTPUT__2"
MAPPED_LABELS = "OUTPUT__3"
MAX_MAPPED_LABELS = 32
"""For so many of a picture's best labels a program gives heat maps."""
CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
EMBEDDED = "embedded"
"""The configuration by which Triton's Python backend serves a model, for want of the PyTorch backend."""
EMBEDDED_CONFIG_FILE = f"configs/{EMBEDDED}.pbtxt"
EMBEDDED_CODE_FILE = "model.py"
"""In each version; see export/embedded_model.py."""
PLATFORMS: dict[ProgramFormat, str] = {"torchscript": "pytorch_libtorch", "torch_aoti": "torch_aoti"}
"""What Triton calls the formats of programs."""
PROGRAM_FILES = {"pytorch_libtorch": "model.pt", "torch_aoti": "model.pt2"}
"""In each version, by its platform."""
RUN_TIMEOUT = "run_timeout_s"
"""Parameter in which whoever drives Triton's model control says what one run may take; the version's code reads it."""
FAILED_VERSIONS = "failed_versions"
"""Parameter in which whoever drives Triton's model control names the versions that could not be loaded: ``3,5``."""
MAX_CARD_CHARACTERS = 65_536
_VERSION_PREFIX = "version."

SCORE_TOLERANCE: dict[Precision, float] = {"fp32": 5e-3, "fp16": 2e-2, "bf16": 6e-2}
"""How far a served score may lie from the exported one, on any device, before the model counts as broken."""


class ContractError(ValueError):
    """A model's configuration is not one that this service can serve; the message says what is missing."""


class GoldenPicture(BaseModel):
    """A picture and what the model must answer to it, checked along the whole path before a model goes live."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    png_base64: str
    scores: dict[int, float] = Field(min_length=1)
    """Expected score by label index, for the highest few labels."""


class VersionFacts(BaseModel):
    """What one version of a model is: where its weights came from, and its own thresholds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    precision: Precision
    source_sha256: str
    """SHA-256 of the checkpoint file that it was exported from."""
    tools: dict[str, str]
    """Versions of the tools that exported it."""
    temperature: float = Field(default=1.0, gt=0.0)
    """What the program divides logits by; fitted on held-out pictures, so that scores are probabilities."""
    thresholds: list[Annotated[float, Field(ge=0.0, le=1.0)]] | None = None
    golden: GoldenPicture
    card: str | None = Field(default=None, max_length=MAX_CARD_CHARACTERS)
    """The model card for people, in Markdown; its plots stay with the run."""


UNLISTED_FACTS = ("golden", "card")
"""What a version's facts hold beside what a list of models says of it: both are long."""


class HeatMaps(BaseModel):
    """The class activation maps that a program gives beside the scores: of ``labels`` labels, ``height × width``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: int = Field(ge=1, le=MAX_MAPPED_LABELS)
    height: int = Field(ge=1)
    width: int = Field(ge=1)


class ModelContract(BaseModel):
    """One version of one model as a caller sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    task: Task
    preprocessing: Preprocessing
    num_labels: int = Field(ge=1)
    embedding_size: int = Field(ge=1)
    heat_maps: HeatMaps | None
    """None for a head that is not linear in its features (ML-Decoder's), and for programs without."""
    max_batch_size: int = Field(ge=1)
    labels_sha256: str
    facts: VersionFacts

    def listed(self) -> dict[str, Any]:
        """As plain values, as a list of models shows it: without :data:`UNLISTED_FACTS`."""
        return self.model_dump(exclude={"facts": set(UNLISTED_FACTS)})


class _Parameters(BaseModel):
    """The model's own parameters, as strings in the configuration."""

    contract_version: Literal["1"]
    task: Task
    crop_pct: float
    interpolation: Interpolation
    resize_mode: ResizeMode
    labels_sha256: str


def labels_digest(labels: list[str]) -> str:
    """SHA-256 of the labels, one a line."""
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()


def read_contract(config: pb.ModelConfig, version: str) -> ModelContract:
    """The contract of ``version`` from Triton's answer to a model-configuration call.

    Raises:
        ContractError: if anything is missing or inconsistent; the message names the model and the fault.
    """
    name = f"model {config.name!r} version {version}"
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    size = _tensor(config.input, INPUT, pb.DataType.TYPE_UINT8, name)
    scores = _tensor(config.output, SCORES, pb.DataType.TYPE_FP32, name)
    embedding = _tensor(config.output, EMBEDDING, pb.DataType.TYPE_FP32, name)
    if len(size) != 3 or size[0] != size[1] or size[2] != 3:
        raise ContractError(f"{name}: {INPUT} must be [S, S, 3], not {size}")
    if len(scores) != 1 or len(embedding) != 1:
        raise ContractError(f"{name}: {SCORES} and {EMBEDDING} must have one dimension, not {scores} and {embedding}")
    if _VERSION_PREFIX + version not in parameters:
        raise ContractError(
            f"{name}: parameter {_VERSION_PREFIX + version!r} is missing; export it with `tresnet export`"
        )
    try:
        own = _Parameters.model_validate(parameters)
        facts = TypeAdapter(Json[VersionFacts]).validate_python(parameters[_VERSION_PREFIX + version])
        contract = ModelContract(
            name=config.name,
            version=version,
            task=own.task,
            preprocessing=Preprocessing(
                image_size=size[0],
                crop_pct=own.crop_pct,
                interpolation=own.interpolation,
                resize_mode=own.resize_mode,
            ),
            num_labels=scores[0],
            embedding_size=embedding[0],
            heat_maps=_read_heat_maps(config, name),
            max_batch_size=config.max_batch_size,
            labels_sha256=own.labels_sha256,
            facts=facts,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ContractError(f"{name}: parameter {where!r} is missing or wrong: {first['msg']}") from error
    if facts.thresholds is not None and len(facts.thresholds) != contract.num_labels:
        raise ContractError(f"{name}: {len(facts.thresholds)} thresholds for {contract.num_labels} labels")
    return contract


def _read_heat_maps(config: pb.ModelConfig, name: str) -> HeatMaps | None:
    if all(output.name != HEAT_MAPS for output in config.output):
        return None
    maps = _tensor(config.output, HEAT_MAPS, pb.DataType.TYPE_FP32, name)
    labels = _tensor(config.output, MAPPED_LABELS, pb.DataType.TYPE_INT64, name)
    if len(maps) != 3 or labels != maps[:1]:
        raise ContractError(f"{name}: {HEAT_MAPS} must be [K, h, w] and {MAPPED_LABELS} [K], not {maps} and {labels}")
    return HeatMaps(labels=maps[0], height=maps[1], width=maps[2])


def write_contract(contract: ModelContract, config: pb.ModelConfig) -> None:
    """Put ``contract`` into ``config``: tensors, batch size, and parameters. Other versions' facts stay."""
    how = contract.preprocessing
    config.name = contract.name
    config.max_batch_size = contract.max_batch_size
    del config.input[:]
    del config.output[:]
    config.input.add(name=INPUT, data_type=pb.DataType.TYPE_UINT8, dims=[how.image_size, how.image_size, 3])
    config.output.add(
        name=SCORES, data_type=pb.DataType.TYPE_FP32, dims=[contract.num_labels], label_filename=LABELS_FILE
    )
    config.output.add(name=EMBEDDING, data_type=pb.DataType.TYPE_FP32, dims=[contract.embedding_size])
    if (maps := contract.heat_maps) is not None:
        dims = [maps.labels, maps.height, maps.width]
        config.output.add(name=HEAT_MAPS, data_type=pb.DataType.TYPE_FP32, dims=dims)
        config.output.add(name=MAPPED_LABELS, data_type=pb.DataType.TYPE_INT64, dims=[maps.labels])
    values = {
        "contract_version": CONTRACT_VERSION,
        "task": contract.task,
        "crop_pct": repr(how.crop_pct),
        "interpolation": how.interpolation,
        "resize_mode": how.resize_mode,
        "labels_sha256": contract.labels_sha256,
        _VERSION_PREFIX + contract.version: contract.facts.model_dump_json(),
    }
    for key, value in values.items():
        config.parameters[key].string_value = value


def describes(config: pb.ModelConfig, version: str) -> bool:
    """Whether ``config`` holds the facts of a version."""
    return _VERSION_PREFIX + version in config.parameters


def described_versions(config: pb.ModelConfig) -> list[str]:
    """The versions whose facts ``config`` holds."""
    return [key.removeprefix(_VERSION_PREFIX) for key in config.parameters if key.startswith(_VERSION_PREFIX)]


def forget_versions(config: pb.ModelConfig, *, keep: Iterable[int]) -> None:
    """Drop the facts of versions that are in the repository no more: the configuration would grow for ever."""
    kept = {f"{_VERSION_PREFIX}{version}" for version in keep}
    for key in [key for key in config.parameters if key.startswith(_VERSION_PREFIX) and key not in kept]:
        del config.parameters[key]


def _tensor(tensors: object, name: str, data_type: int, model: str) -> list[int]:
    for tensor in tensors:  # type: ignore[attr-defined]
        if tensor.name == name:
            if tensor.data_type != data_type:
                raise ContractError(f"{model}: tensor {name} must be {pb.DataType.Name(data_type)}")
            return [int(side) for side in tensor.dims]
    raise ContractError(f"{model}: tensor {name} is missing")
