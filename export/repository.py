"""The model repository on disk: how a verified program becomes a version that Triton serves, whole or not at all.

Everything is written aside on the same file system, flushed, and renamed in. A new model appears as one folder
by one rename. A new version of a known model appears by one rename too, after the configuration has learnt its
facts: a configuration that knows a version which is not there yet harms nobody.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tresnet.card import CARD_FILE
from tresnet.contract import (
    CONFIG_FILE,
    EMBEDDED_CODE_FILE,
    EMBEDDED_CONFIG_FILE,
    INPUT,
    LABELS_FILE,
    PLATFORMS,
    PROGRAM_FILES,
    ContractError,
    ModelContract,
    described_versions,
    forget_versions,
    read_contract,
    write_contract,
)  # fmt: skip
from tresnet.errors import UserError
from tresnet.folders import made
from tresnet.terms import ProgramFormat

_EMBEDDED_FILES = {"embedded_model.py": EMBEDDED_CODE_FILE, "packed_weights.py": "packed_weights.py"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_STAGING = ".staging-"
_MAX_QUEUE_US = 60_000_000
"""A request that has waited so long in Triton is dropped; the gateway's own deadlines are shorter."""


class RepositoryError(UserError):
    """The model cannot be published as asked; the message says why, and nothing was changed."""


def check_name(name: str) -> None:
    """Raise :class:`RepositoryError` unless ``name`` can be a model's name, in a path and in a URL."""
    if not _NAME.fullmatch(name):
        raise RepositoryError(
            f"{name!r} cannot be a model's name: use letters, digits, '_', '.', '-', beginning with a letter or digit"
        )


def published_versions(model: Path) -> list[int]:
    """The version numbers in a model's folder, ascending; empty if there is no such folder."""
    if not model.is_dir():
        return []
    return sorted(int(entry.name) for entry in model.iterdir() if entry.name.isdecimal() and entry.is_dir())


def choose_version(model: Path, wanted: int | None) -> int:
    """``wanted``, or the next free number.

    Raises:
        RepositoryError: if ``wanted`` exists already.
    """
    versions = published_versions(model)
    if wanted is None:
        return versions[-1] + 1 if versions else 1
    if wanted in versions:
        raise RepositoryError(f"{model.name} has a version {wanted} already: choose another --version, or leave it out")
    return wanted


def device_kind(form: ProgramFormat, device: torch.device) -> int:
    """Triton's kind of instance: either one for TorchScript, the one that it was compiled for with AOTInductor."""
    if form == "torchscript":
        return int(pb.ModelInstanceGroup.KIND_AUTO)
    return int(pb.ModelInstanceGroup.KIND_GPU if device.type == "cuda" else pb.ModelInstanceGroup.KIND_CPU)


def known_contract(model: Path) -> ModelContract | None:
    """What the versions of the model in folder ``model`` have in common; None if there is no such model.

    Raises:
        RepositoryError: if the folder holds a model of another origin.
    """
    if not (model / CONFIG_FILE).exists():
        return None
    config = _read_config(model / CONFIG_FILE)
    try:
        return read_contract(config, next(iter(described_versions(config)), "1"))
    except ContractError as error:
        raise RepositoryError(f"{model} holds a model that `tresnet export` did not write: {error}") from error


def check_agrees(model: Path, contract: ModelContract, form: ProgramFormat, kind: int) -> None:
    """Raise :class:`RepositoryError` if ``contract`` cannot be a further version of the model in ``model``."""
    known = known_contract(model)
    if known is None:
        return
    config = _read_config(model / CONFIG_FILE)
    for what, old, new in (
        ("task", known.task, contract.task),
        ("preprocessing", known.preprocessing, contract.preprocessing),
        ("labels", known.labels_sha256, contract.labels_sha256),
        ("number of labels", known.num_labels, contract.num_labels),
        ("embedding size", known.embedding_size, contract.embedding_size),
        ("form of heat maps", known.heat_maps, contract.heat_maps),
        ("maximum batch size", known.max_batch_size, contract.max_batch_size),
        ("format", config.platform, PLATFORMS[form]),
        ("kind of device", config.instance_group[0].kind if config.instance_group else kind, kind),
    ):
        if old != new:
            raise RepositoryError(
                f"{model.name} is served with another {what} ({old}, now {new}): versions of one model must agree; "
                "export it under another --name"
            )


def publish(
    repository: Path,
    contract: ModelContract,
    labels: list[str],
    write_program: Callable[[Path], None],
    form: ProgramFormat = "torchscript",
    kind: int = pb.ModelInstanceGroup.KIND_AUTO,
    *,
    or_next_version: bool = False,
) -> Path:
    """Put a version into the repository and return its folder.

    ``write_program`` is called with the path to write and verify the program at; if it raises, nothing is changed.
    ``or_next_version``: if another export has taken the contract's version meanwhile, the next free one will do.

    Raises:
        RepositoryError: if the name, the version, or the contract does not fit what is there.
        OSError: if the repository cannot be written; what was written aside is removed.
    """
    check_name(contract.name)
    model = repository / contract.name
    with made(repository), _locked(repository):
        version_number = choose_version(model, None if or_next_version else int(contract.version))
        contract = contract.model_copy(update={"version": str(version_number)})
        check_agrees(model, contract, form, kind)
        _remove_leftovers(repository, model)
        is_new = not model.exists()
        staging = Path(tempfile.mkdtemp(dir=repository if is_new else model, prefix=_STAGING))
        try:
            version = staging / contract.version if is_new else staging
            version.mkdir(exist_ok=True)
            write_program(version / PROGRAM_FILES[PLATFORMS[form]])
            for source, name in _EMBEDDED_FILES.items():
                shutil.copyfile(Path(__file__).with_name(source), version / name)
            if contract.facts.card is not None:
                (version / CARD_FILE).write_text(contract.facts.card, encoding="utf-8")
            _open_to_readers(staging)
            if is_new:
                _write_configs(staging, contract, labels, form, kind)
                _open_to_readers(staging)
                _sync(staging)
                staging.rename(model)
                _sync_names(repository)
            else:
                _sync(staging)
                _write_configs(model, contract, labels, form, kind)
                staging.rename(model / contract.version)
                _sync_names(model)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return model / contract.version


def _remove_leftovers(repository: Path, model: Path) -> None:
    """What exports that were killed have left: whoever writes now holds the lock."""
    for folder in [*repository.glob(f"{_STAGING}*"), *model.glob(f"{_STAGING}*")]:
        shutil.rmtree(folder, ignore_errors=True)


def _write_configs(model: Path, contract: ModelContract, labels: list[str], form: ProgramFormat, kind: int) -> None:
    """``config.pbtxt`` for Triton's PyTorch backend, ``configs/embedded.pbtxt`` for the Python one, and the labels."""
    path = model / CONFIG_FILE
    if not path.exists():  # a folder alone is no model yet
        _replace(model / LABELS_FILE, "".join(f"{label}\n" for label in labels))
    config = _read_config(path) if path.exists() else pb.ModelConfig()
    forget_versions(config, keep=published_versions(model))
    write_contract(contract, config)
    config.platform = PLATFORMS[form]
    config.version_policy.all.SetInParent()
    del config.instance_group[:]
    config.instance_group.add(kind=kind)
    queue = config.dynamic_batching.default_queue_policy
    queue.timeout_action = pb.ModelQueuePolicy.REJECT
    queue.default_timeout_microseconds = _MAX_QUEUE_US
    queue.allow_timeout_override = True
    queue.max_queue_size = 16 * contract.max_batch_size
    del config.model_warmup[:]
    for batch_size in sorted({1, contract.max_batch_size}):
        _add_warmup(config, contract, batch_size)

    embedded = pb.ModelConfig()
    embedded.CopyFrom(config)
    embedded.platform = ""
    embedded.backend = "python"
    embedded.ClearField("dynamic_batching")  # it can leave a batch lying: docs/decisions/0004-batch-when-busy.md
    del embedded.model_warmup[:]
    _add_warmup(embedded, contract, 1)
    if form == "torch_aoti":
        # Triton's backend gives every merged request the whole output: the gateway's batches go one by one.
        config.backend = "pytorch"
        config.ClearField("dynamic_batching")

    (model / EMBEDDED_CONFIG_FILE).parent.mkdir(exist_ok=True)
    _replace(model / EMBEDDED_CONFIG_FILE, _as_text(embedded))
    _replace(path, _as_text(config))


def _add_warmup(config: pb.ModelConfig, contract: ModelContract, batch_size: int) -> None:
    side = contract.preprocessing.image_size
    warmup = config.model_warmup.add(name=f"batch_{batch_size}", batch_size=batch_size, count=2)
    warmup.inputs[INPUT].data_type = pb.DataType.TYPE_UINT8
    warmup.inputs[INPUT].dims.extend([side, side, 3])
    warmup.inputs[INPUT].random_data = True


def _read_config(path: Path) -> pb.ModelConfig:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"{path} is not a Triton model configuration: {error}") from error


def _as_text(config: pb.ModelConfig) -> str:
    """Protobuf leaves out values equal to their default; the kind of instance is worth reading all the same."""
    text: str = text_format.MessageToString(config)
    return text.replace("instance_group {\n}", "instance_group {\n  kind: KIND_AUTO\n}")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    _sync_file(temporary)
    temporary.replace(path)


def _open_to_readers(folder: Path) -> None:
    """Triton often runs as another user: all may read, as with any file made in the usual way."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            _sync_names(path)
        else:
            _sync_file(path)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    """As far as the file system has a way: some of the network refuse it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """One writer at a time."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
