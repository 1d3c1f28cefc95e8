"""The training loop: a recipe, data and a seed enter; checkpoints, figures and curves in RUN_DIR leave.

Read :func:`train` from the top. Every step's pictures follow from the seed and the step's number, so a run that was
killed goes on from its last checkpoint as if it had not been: on a CPU to the last bit.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch

from training.card import write_card
from training.data import load_data, write_pictures
from training.distributed import World, joined
from training.evaluation import Evaluation, doubt_in, evaluate_checkpoint
from training.report import write_report
from training.runlog import draw_curves
from training.stopping import stop_requests
from training.trainer import Run, Trainer
from tresnet.card import CARD_FILE
from tresnet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tresnet.errors import UserError
from tresnet.folders import made

logger = logging.getLogger(__name__)

PUBLISHED = "hf://timm/tresnet_m.miil_in1k"
"""ImageNet weights that anybody with a network can begin with."""


class StoppedError(Exception):
    """The run was asked to stop and has saved where it was."""


def train(run: Run) -> Evaluation:
    """Train; returns how the best checkpoint does on the test pictures.

    Raises:
        UserError: if the run cannot be started or resumed as asked.
        StoppedError: after SIGINT or SIGTERM, once the step under way is saved.
        OSError: if RUN_DIR cannot be written; the last checkpoint stays whole.
    """
    with joined(run.device) as world:
        return _train(run, world)


def _train(run: Run, world: World) -> Evaluation:
    resumed = world.of_first(lambda: _begun(run))
    with made(run.out):  # before pictures are looked at, which takes long
        return _train_in(run, world, resumed)


def _begun(run: Run) -> Checkpoint | None:
    """Where the run is to go on."""
    last = run.out / "last.pt"
    if last.exists() and not run.resume:
        raise UserError(f"{run.out} holds a run already: go on with --resume, or choose another --out")
    if last.exists():
        return load_checkpoint(last)
    if run.resume:
        logger.info("%s holds no checkpoint yet: starting from the beginning", run.out)
    return None


def _train_in(run: Run, world: World, resumed: Checkpoint | None) -> Evaluation:
    recipe, last, best = run.recipe, run.out / "last.pt", run.out / "best.pt"
    torch.manual_seed(run.seed)
    how = recipe.preprocessing()
    checks = resumed is None or run.skip_bad  # pictures that were good stay so; those left out must be known again
    data = load_data(recipe, how, run.seed, run.data, checked_by=world if checks else None, skip_bad=run.skip_bad)
    run = replace(run, recipe=(recipe := recipe.fitted(len(data.train), world.size)))
    if recipe.wants_init and run.init is None and resumed is None and world.is_first:
        logger.warning("starting from random weights: with --init, %s say, fewer pictures and epochs do", PUBLISHED)
    trainer = Trainer(run, data, world, resumed)
    if resumed is None and data.own_test and world.is_first:
        write_pictures(run.out / "test", data.test, tags=recipe.task == "tag")

    if world.is_first:
        logger.info("training %s at %d pixels: %d epochs, %d steps of %d pictures",
                    recipe.arch, recipe.image_size, recipe.epochs, trainer.steps, recipe.batch_size)  # fmt: skip
    saved_at = time.monotonic()
    with stop_requests() as asked_to_stop, trainer.run_log() as log:
        for pictures, targets in trainer.batches:  # uint8 [B, S, S, 3]; int64 [B] or float32 [B, C]
            figures = trainer.train_step(pictures, targets)
            log.step(trainer.step, figures)
            epoch_ends = trainer.step % trainer.steps_per_epoch == 0
            if epoch_ends:
                log.epoch(trainer.step // trainer.steps_per_epoch, trainer.end_epoch(best))
            stops = world.any(bool(asked_to_stop))
            if epoch_ends or stops or time.monotonic() - saved_at > run.checkpoint_every_s:
                trainer.save(last)
                saved_at = time.monotonic()
            if stops and trainer.step < trainer.steps:
                raise StoppedError
    chosen = world.of_first(lambda: load_checkpoint(best))
    evaluation = evaluate_checkpoint(chosen, world, pictures=data.test, workers=run.workers)
    if world.is_first:
        draw_curves(run.out)
        write_report(run.out, evaluation)
        card = write_card(trainer.making(), data, chosen.facts, evaluation)
        (run.out / CARD_FILE).write_text(card, encoding="utf-8")
        save_checkpoint(best, chosen.facts, chosen.weights, card=card, held_out=data.held_out)
        if (doubt := doubt_in(evaluation)) is not None:
            logger.warning("%s: start from other weights (--init), give more pictures, or train for more epochs", doubt)
    return evaluation
