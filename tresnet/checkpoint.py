"""Checkpoints: what ``tresnet train`` writes, read back as a network and the facts that belong to it.

A checkpoint is a torch file of plain values and tensors, always read with ``weights_only=True``, so reading
one never runs code from it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tresnet.contract import Task
from tresnet.errors import UserError
from tresnet.inplace_abn import Norm
from tresnet.model import TResNet, create_model
from tresnet.picture import Preprocessing

FORMAT = "tresnet-serving/1"


class CheckpointError(UserError):
    """The file cannot be used as a checkpoint; the message is one sentence for the user."""


class ModelFacts(BaseModel):
    """What must be known to rebuild a trained network and to use it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str
    task: Task
    labels: list[str] = Field(min_length=1)
    preprocessing: Preprocessing
    inplace_abn: bool = True
    """Whether norm weights are InPlace-ABN's (the scale is ``|weight| + eps``) or plain batch norm's."""
    stem_slope: float | None = None
    block_slope: float | None = None
    thresholds: list[float] | None = None
    """One score threshold a label, fitted on held-out pictures; for ``tag`` only."""
    recipe: str | None = None
    seed: int | None = None


class Checkpoint(BaseModel):
    """A checkpoint in memory: its facts, its weights, where it came from."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    facts: ModelFacts
    weights: dict[str, torch.Tensor]
    path: Path
    sha256: str
    training: dict[str, Any] | None = None
    """What a resume needs: optimizer, schedule, generators, counters."""


def save_checkpoint(
    path: Path, facts: ModelFacts, weights: dict[str, torch.Tensor], training: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint beside ``path``, flush it to disk, and rename it in: it is there whole or not at all.

    Raises:
        OSError: if the folder cannot be written or the disk is full; an older file at ``path`` stays as it was.
    """
    content = {"format": FORMAT, "facts": facts.model_dump(), "model": weights, "training": training}
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch's zip writer reports a full disk so
                raise OSError(f"could not write {path}: {error}") from error
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: if ``path`` is missing, unreadable, or no such checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, because it is not a torch checkpoint of plain tensors and values"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a torch checkpoint that can be read") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a torch file, but not a checkpoint that `tresnet train` wrote")
    try:
        facts = ModelFacts.model_validate(content["facts"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{path}: the checkpoint's facts are missing or damaged") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Checkpoint(facts=facts, weights=content["model"], path=path, sha256=digest, training=content.get("training"))


def build_model(checkpoint: Checkpoint, norm: Norm | None = None) -> TResNet:
    """The checkpoint's network with its weights, in evaluation mode, on the CPU.

    ``norm`` picks the implementation of its norm layers; by default our own InPlace-ABN, or batch norm if it
    was trained with that.

    Raises:
        CheckpointError: if the weights do not fit the architecture that the checkpoint names.
    """
    facts = checkpoint.facts
    try:
        model = create_model(
            facts.arch,
            len(facts.labels),
            norm or ("own" if facts.inplace_abn else "bn"),
            stem_slope=facts.stem_slope,
            block_slope=facts.block_slope,
        )
        model.load_state_dict(checkpoint.weights)
    except (UserError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{checkpoint.path}: the weights are not a {facts.arch}'s: {reason}") from error
    return model.eval()
