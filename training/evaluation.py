"""A model's figures on labelled pictures, and its calibration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binomtest
from torch import Tensor

from training.data import EVALUATION_BATCH, all_targets, evaluation_batches, load_data
from training.distributed import World
from training.held_out import find_again
from training.metrics import (
    Logits,
    Scores,
    best_temperature,
    best_thresholds,
    evaluate_scores,
    expected_calibration_error,
    to_scores,
)
from training.pictures import Pictures, without_bad
from training.recipes import find_recipe
from tresnet.checkpoint import Checkpoint, ModelFacts, build_model
from tresnet.errors import UserError
from tresnet.model import TResNet
from tresnet.terms import Task


@dataclass(frozen=True)
class Evaluation:
    """What a model answered to labelled pictures, and what that is worth."""

    task: Task
    labels: list[str]
    scores: Scores  # [N, C], calibrated
    targets: npt.NDArray[Any]  # [N] or [N, C]
    thresholds: list[float] | None
    figures: dict[str, float]


@torch.inference_mode()
def predict(
    models: Sequence[TResNet], batches: Iterable[tuple[Tensor, Tensor]], pictures: int, world: World
) -> list[Logits]:
    """Each model's ``float32 [N, C]`` logits of all N pictures in every process; each has its share of the batches.

    Raises:
        UserError: if they are not numbers.
    """
    for model in models:
        model.eval()
    own: list[list[Logits]] = [[] for _ in models]
    for batch, _ in batches:
        x = to_input(batch.to(world.device, non_blocking=True))
        for answers, model in zip(own, models, strict=True):
            answers.append(model(x).float().cpu().numpy())
    parts = world.gather(own)
    order = range(-(-pictures // EVALUATION_BATCH))
    found = [
        np.concatenate([parts[index % world.size][place][index // world.size] for index in order])
        for place in range(len(models))
    ]
    if not all(np.isfinite(logits).all() for logits in found):
        raise UserError("the network's answers are no numbers: its weights are spoilt, mostly by a high learning rate")
    return found


def to_input(pictures: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    """``uint8 [N, S, S, 3]`` pictures to ``float32 [N, 3, S, S]`` in 0..1."""
    return pictures.permute(0, 3, 1, 2).contiguous(memory_format=memory_format).float() / 255


def calibrate(facts: ModelFacts, logits: Logits, targets: npt.NDArray[Any]) -> ModelFacts:
    """``facts`` with the temperature and, for tags, the thresholds that fit held-out logits best."""
    temperature = best_temperature(facts.task, logits, targets)
    thresholds = None
    if facts.task == "tag":
        thresholds = best_thresholds(to_scores("tag", logits, temperature), targets)
    return facts.model_copy(update={"temperature": temperature, "thresholds": thresholds})


def judge(facts: ModelFacts, logits: Logits, targets: npt.NDArray[Any]) -> Evaluation:
    """The figures of a model's logits; ``ece_raw`` is the calibration error without the temperature."""
    task, scores = facts.task, to_scores(facts.task, logits, facts.temperature)
    figures = evaluate_scores(task, scores, targets, facts.thresholds)
    figures["ece"] = expected_calibration_error(task, scores, targets)
    figures["ece_raw"] = expected_calibration_error(task, to_scores(task, logits), targets)
    return Evaluation(task, facts.labels, scores, targets, facts.thresholds, figures)


def doubt_in(evaluation: Evaluation) -> str | None:
    """Where one label wins: a sentence if always naming the commonest label may be as good."""
    if evaluation.task != "classify":
        return None
    pictures, top1 = len(evaluation.targets), evaluation.figures["top1"]
    commonest = np.bincount(evaluation.targets).max() / pictures
    if binomtest(round(top1 * pictures), pictures).proportion_ci(method="wilson").low > commonest:
        return None
    return (
        f"not shown to be better than guessing: {top1:.0%} of {pictures:,} pictures are named right, and "
        f"{commonest:.0%} would be with the commonest label always"
    )


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    world: World,
    *,
    where: str | None = None,
    pictures: Pictures | None = None,
    image_size: int | None = None,
    workers: int = 0,
    skip_bad: bool = False,
) -> Evaluation:
    """Judge a checkpoint on ``pictures``, on those at ``where``, or on those that its run held out.

    All but ``pictures`` are decoded once beforehand, to see that they can be.

    Raises:
        UserError: if the data cannot be used.
    """
    facts = checkpoint.facts
    tags = facts.task == "tag"
    how = facts.preprocessing.changed(image_size=image_size)
    if pictures is None:
        pictures = without_bad(_held_out(checkpoint, where), skip_bad=skip_bad, world=world)
    pictures = pictures.relabelled(facts.labels, by_order=True)
    if not tags and any(len(target) != 1 for target in pictures.targets):
        raise UserError("the data has pictures without a label or with several, and the checkpoint gives one label")
    model = build_model(checkpoint).to(world.device)
    batches = evaluation_batches(pictures, how, workers, world, tags=tags)
    [logits] = predict([model], batches, len(pictures), world)
    return judge(facts, logits, all_targets(pictures, tags=tags))


def _held_out(checkpoint: Checkpoint, where: str | None) -> Pictures:
    facts = checkpoint.facts
    if where is not None or checkpoint.held_out is not None:
        return find_again(checkpoint.held_out, where)
    if facts.recipe is None:
        raise UserError(f"{checkpoint.path} does not say what it was trained on: give --data DIR")
    return load_data(find_recipe(facts.recipe), facts.preprocessing, facts.seed or 0, None).test
