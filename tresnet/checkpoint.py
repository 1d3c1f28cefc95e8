"""Checkpoints: what ``tresnet train`` writes and what the world publishes, read as weights and the facts about them.

A checkpoint is a torch file of plain values and tensors, always read with ``weights_only=True``, or a
safetensors file: reading one never runs code from it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tresnet import foreign, hub, presets
from tresnet.errors import UserError
from tresnet.heads import head_for
from tresnet.model import TResNet, create_model
from tresnet.picture import Preprocessing
from tresnet.terms import Norm, Task

FORMAT = "tresnet-serving/1"
HUB = "hf:"
ABN_EPS = 1e-5
"""What InPlace-ABN adds to the absolute value of its weight."""


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
    temperature: float = Field(default=1.0, gt=0.0)
    """What logits are divided by before they become scores, so that these are probabilities."""
    thresholds: list[float] | None = None
    """One score threshold a label, fitted on held-out pictures; for ``tag`` only."""
    recipe: str | None = None
    seed: int | None = None

    @model_validator(mode="after")
    def _thresholds_are_the_labels(self) -> ModelFacts:
        if self.thresholds is not None and len(self.thresholds) != len(self.labels):
            raise ValueError("as many thresholds as labels are needed")
        return self


class HeldOut(BaseModel):
    """The pictures that a run was judged by, for those who judge it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    """Where the run found its pictures, as it was given."""
    pictures: dict[str, str] | None = None
    """Digests of names to digests of contents; None where the data came with a split of its own."""


class Checkpoint(BaseModel):
    """A checkpoint in memory: its facts, its weights, where it came from."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    facts: ModelFacts
    weights: dict[str, torch.Tensor]
    path: Path
    sha256: str
    training: dict[str, Any] | None = None
    """What a resume needs: optimizer, schedule, generators, counters."""
    card: str | None = None
    """The model card, in Markdown; a finished run's best checkpoint has one."""
    held_out: HeldOut | None = None
    """None for data that the recipe brings, and for published weights."""


def save_checkpoint(
    path: Path,
    facts: ModelFacts,
    weights: dict[str, torch.Tensor],
    training: dict[str, Any] | None = None,
    card: str | None = None,
    held_out: HeldOut | None = None,
) -> None:
    """Write a checkpoint beside ``path``, flush it to disk, and rename it in: it is there whole or not at all.

    Raises:
        OSError: if the folder cannot be written or the disk is full; an older file at ``path`` stays as it was.
    """
    content = {"format": FORMAT, "facts": facts.model_dump(), "model": weights, "training": training, "card": card}
    content["held_out"] = held_out.model_dump() if held_out is not None else None
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")  # what a killed run leaves there, its next start writes over
    try:
        with temporary.open("wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch's zip writer reports a full disk so
                reason = getattr(error.__context__, "strerror", None) or error
                raise OSError(f"could not write {path}: {reason}") from error
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path, *, task: Task | None = None, image_size: int | None = None) -> Checkpoint:
    """Read a checkpoint of ``tresnet train``, of the published releases, or of timm (:mod:`tresnet.foreign`).

    ``hf://OWNER/NAME`` names one of timm's on the Hugging Face hub. ``task`` and ``image_size`` (pixels) are the
    caller's wishes for files that say nothing of them.

    Raises:
        CheckpointError: if ``path`` is missing, unreadable, or no such checkpoint.
    """
    if path.parts[:1] == (HUB,):
        try:
            path, published_size = hub.fetch("/".join(path.parts[1:]))
        except UserError as error:
            raise CheckpointError(str(error)) from error
        image_size = image_size or published_size
    if path.is_dir():
        best = path / "best.pt"
        raise CheckpointError(f"{path} is a folder: give {best if best.is_file() else 'a file in it'}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    content = _read(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if isinstance(content, dict) and content.get("format") == FORMAT:
        try:
            facts, weights = ModelFacts.model_validate(content["facts"]), content["model"]
            extra = {name: content.get(name) for name in ("training", "card", "held_out")}
            return Checkpoint(facts=facts, weights=weights, path=path, sha256=digest, **extra)
        except (KeyError, ValidationError) as error:
            raise CheckpointError(f"{path}: the checkpoint's facts or weights are missing or damaged") from error
    try:
        converted = foreign.convert(content)
        if converted is None:
            raise UserError("holds no weights of a TResNet in a form that is known here")
        facts = _published_facts(converted, task, image_size)
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(facts=facts, weights=converted.weights, path=path, sha256=digest)


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors:
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of an unusual pickle before it refuses it
            # timm's training script keeps its arguments beside the weights: a bag of values, which runs nothing.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, because it is not a torch checkpoint of plain tensors and values"
        ) from error
    except Exception as error:  # whatever the readers raise on bytes that are not theirs: the file is at fault
        raise CheckpointError(f"{path}: not a checkpoint that can be read") from error


def _published_facts(converted: foreign.ForeignWeights, task: Task | None, image_size: int | None) -> ModelFacts:
    classes = converted.num_classes
    task = task or presets.guess_task(classes, converted.weights.keys())
    slope = presets.v2_slope(converted.arch, classes, converted.inplace_abn)
    return ModelFacts(
        arch=converted.arch,
        task=task,
        labels=converted.labels or presets.label_names(task, classes),
        preprocessing=presets.preprocessing(converted.arch, task, classes, image_size),
        inplace_abn=converted.inplace_abn,
        stem_slope=slope,
        block_slope=slope,
    )


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
            head_for(checkpoint.weights),
            norm or ("own" if facts.inplace_abn else "bn"),
            stem_slope=facts.stem_slope,
            block_slope=facts.block_slope,
        )
        model.load_state_dict(checkpoint.weights)
    except (
        UserError,
        RuntimeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # the head's sizes are read from the weights
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint.path}: the weights are not a {facts.arch}'s: {reason}") from error
    if (classes := model.head.out_features) != len(facts.labels):
        raise CheckpointError(
            f"{checkpoint.path}: its weights are for {classes} labels, and it names {len(facts.labels)}"
        )
    return model.eval()


def initialise(model: TResNet, checkpoint: Checkpoint, labels: list[str], *, inplace_abn: bool) -> list[str]:
    """Give a fresh ``model`` for ``labels`` the checkpoint's weights; returns what stayed fresh.

    Its head is the checkpoint's if the labels are, in their order. ``inplace_abn`` says which norm layers ``model``
    has; scales are converted where the checkpoint has the other kind.

    Raises:
        CheckpointError: if the checkpoint is of another architecture, or has batch norms with negative scales where
            ``model`` has InPlace-ABN, which cannot express them.
    """
    weights, own = dict(checkpoint.weights), model.state_dict()
    if not _has_labels(checkpoint.facts, labels):
        weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
    if checkpoint.facts.inplace_abn != inplace_abn:
        for key in [key for key in weights if key.endswith("abn.weight")]:
            weights[key] = _other_scale(weights[key], checkpoint, inplace_abn=inplace_abn)
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    fresh = sorted(key for key in own.keys() - fitting.keys() if not key.endswith("num_batches_tracked"))
    if misfits := [key for key in fresh if not key.startswith("head.")]:
        raise CheckpointError(f"{checkpoint.path} is of another architecture: {misfits[0]} does not fit")
    model.load_state_dict(fitting, strict=False)
    return fresh


def _has_labels(facts: ModelFacts, labels: list[str]) -> bool:
    """Published weights have no names for their classes, or others than folders have: there the number must do."""
    is_published = facts.recipe is None
    return facts.labels == labels or (is_published and not set(facts.labels) & set(labels))


def _other_scale(weight: torch.Tensor, checkpoint: Checkpoint, *, inplace_abn: bool) -> torch.Tensor:
    if not inplace_abn:
        return weight.abs() + ABN_EPS
    if bool((weight < 0).any()):
        raise CheckpointError(f"{checkpoint.path} has batch norms with negative scales: train with --norm bn")
    return (weight - ABN_EPS).clamp(min=0)
