"""The training loop: a recipe, data and a seed enter; checkpoints, figures and curves in RUN_DIR leave.

Read :func:`train` from the top. Every step's pictures follow from the seed and the step's number, so a run that was
killed goes on from its last checkpoint as if it had not been: on a CPU to the last bit.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.augment import mix, smoothed_one_hot
from training.average import moving_average
from training.card import Making, device_name, write_card
from training.data import DataSet, all_targets, load_data, training_batches, write_pictures
from training.distributed import World, joined
from training.evaluation import Evaluation, calibrate, doubt_in, evaluate_checkpoint, judge, predict, to_input
from training.losses import asymmetric_loss
from training.recipes import Recipe
from training.report import write_report
from training.runlog import RunLog, draw_curves
from tresnet.card import CARD_FILE
from tresnet.checkpoint import Checkpoint, ModelFacts, initialise, load_checkpoint, save_checkpoint
from tresnet.errors import UserError
from tresnet.inplace_abn import Norm, resolve_norm
from tresnet.model import TResNet, create_model

logger = logging.getLogger(__name__)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINT_EVERY_S = 600.0
PUBLISHED = "hf://timm/tresnet_m.miil_in1k"
"""ImageNet weights that anybody with a network can begin with."""


@dataclass(frozen=True)
class Run:
    """A recipe as it is to be run."""

    recipe: Recipe
    out: Path
    seed: int = 0
    data: str | None = None
    init: Path | None = None
    resume: bool = False
    norm: Norm = "auto"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    """Processes that load pictures; 0 loads them between the steps."""
    skip_bad: bool = False
    checkpoint_every_s: float = CHECKPOINT_EVERY_S


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
    last = run.out / "last.pt"
    if last.exists() and not run.resume:
        raise UserError(f"{run.out} holds a run already: go on with --resume, or choose another --out")
    resumed = load_checkpoint(last) if last.exists() else None
    if run.resume and resumed is None:
        logger.info("%s holds no checkpoint yet: starting from the beginning", run.out)
    with _left_only_if_used(run.out):
        return _train_in(run, world, resumed)


def _train_in(run: Run, world: World, resumed: Checkpoint | None) -> Evaluation:
    recipe, last, best = run.recipe, run.out / "last.pt", run.out / "best.pt"
    torch.manual_seed(run.seed)
    how = recipe.preprocessing()
    checks = resumed is None or run.skip_bad  # pictures that were good stay so; those left out must be known again
    data = load_data(recipe, how, run.seed, run.data, checked_by=world if checks else None, skip_bad=run.skip_bad)
    run = replace(run, recipe=(recipe := recipe.fitted(len(data.train), world.size)))
    if recipe.wants_init and run.init is None and resumed is None and world.is_first:
        logger.warning("starting from random weights: with --init, %s say, fewer pictures and epochs do", PUBLISHED)
    trainer = _Trainer(run, data, world)
    if resumed is not None:
        trainer.resume(resumed)
    elif data.own_test and world.is_first:
        write_pictures(run.out / "test", data.test, tags=recipe.task == "tag")

    if world.is_first:
        logger.info("training %s at %d pixels: %d epochs, %d steps of %d pictures",
                    recipe.arch, recipe.image_size, recipe.epochs, trainer.steps, recipe.batch_size)  # fmt: skip
    batches = training_batches(data.train, recipe, len(data.labels), run.seed, trainer.step, run.workers, world)
    saved_at = time.monotonic()
    with _stop_requests() as asked_to_stop, trainer.run_log() as log:
        for pictures, targets in batches:  # uint8 [B, S, S, 3]; int64 [B] or float32 [B, C]
            figures = trainer.train_step(pictures, targets)
            log.step(trainer.step, figures)
            if trainer.step % trainer.steps_per_epoch == 0:
                log.epoch(trainer.step // trainer.steps_per_epoch, trainer.end_epoch(best))
                trainer.save(last)
                saved_at = time.monotonic()
            elif asked_to_stop or time.monotonic() - saved_at > run.checkpoint_every_s:
                trainer.save(last)
                saved_at = time.monotonic()
            if asked_to_stop and trainer.step < trainer.steps:
                raise StoppedError
    chosen = load_checkpoint(best)
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


@contextmanager
def _left_only_if_used(folder: Path) -> Iterator[None]:
    """Made before pictures are looked at, which takes long; gone again if the run fails before it leaves anything."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # it refuses to remove what is not empty
                folder.rmdir()
        raise


class _Trainer:
    """All that changes from step to step, and what a checkpoint must hold of it."""

    def __init__(self, run: Run, data: DataSet, world: World) -> None:
        self.run, self.recipe, self.data, self.world = run, run.recipe, data, world
        recipe = run.recipe
        self.steps_per_epoch = len(data.train) // recipe.batch_size
        self.steps = self.steps_per_epoch * recipe.epochs
        if self.steps == 0:
            few = len(data.train)
            smaller = f", or --batch-size {few}" if few > 1 else ""
            raise UserError(f"{few} training pictures are fewer than a batch: give {recipe.batch_size}{smaller}")
        if recipe.batch_size % (world.size * recipe.accumulate):
            raise UserError(f"a batch of {recipe.batch_size} cannot be shared by {world.size} × {recipe.accumulate}")
        norm = resolve_norm(run.norm, world.device)
        self.facts = ModelFacts(
            arch=recipe.arch,
            task=recipe.task,
            labels=data.labels,
            preprocessing=recipe.preprocessing(),
            inplace_abn=norm != "bn",
            recipe=recipe.name,
            seed=run.seed,
        )
        # What tensor cores want; the package's kernels read planes.
        use_planes = world.device.type == "cpu" or norm == "package"
        self.memory_format = torch.contiguous_format if use_planes else torch.channels_last
        self.model = self._create_model(norm)
        self.parallel: nn.Module = self.model
        if world.size > 1:
            # Each process keeps its own running statistics; the first one's are taken where they count.
            self.parallel = DistributedDataParallel(self.model, broadcast_buffers=False)
        self.average = moving_average(self.model, recipe.ema) if recipe.ema is not None else None
        self.optimizer = _optimizer(self.model, recipe)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, recipe.learning_rate, self.steps, pct_start=recipe.rise
        )
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16")
        self.step, self.best_score = 0, -1.0
        self.spent_s, self.began_at = 0.0, time.monotonic()

    def run_log(self) -> RunLog:
        """The log of this run from here on."""
        recipe = self.recipe
        return RunLog(
            self.run.out,
            step=self.step,
            steps_per_epoch=self.steps_per_epoch,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            is_first=self.world.is_first,
        )

    @property
    def seconds(self) -> float:
        """Spent on training, by this start of the run and those before it, as far as their checkpoints tell."""
        return self.spent_s + time.monotonic() - self.began_at

    def making(self) -> Making:
        """For the card."""
        return Making(
            recipe=self.recipe,
            seed=self.run.seed,
            init=self.run.init.name if self.run.init is not None else None,
            steps=self.step,
            seconds=self.seconds,
            device=device_name(self.world.device),
            processes=self.world.size,
        )

    def _create_model(self, norm: Norm) -> TResNet:
        init = load_checkpoint(self.run.init, task=self.recipe.task) if self.run.init is not None else None
        if init is not None:  # a network goes on with the slopes that it was trained with
            slopes = {"stem_slope": init.facts.stem_slope, "block_slope": init.facts.block_slope}
            self.facts = self.facts.model_copy(update=slopes)
        facts = self.facts
        model = create_model(
            facts.arch, len(facts.labels), norm, stem_slope=facts.stem_slope, block_slope=facts.block_slope
        )
        if init is not None:
            fresh = initialise(model, init, inplace_abn=facts.inplace_abn)
            logger.info("initialised from %s; fresh: %s", self.run.init, ", ".join(fresh) or "nothing")
        return model.to(self.world.device, memory_format=self.memory_format)  # type: ignore[call-overload,no-any-return]

    def train_step(self, pictures: Tensor, targets: Tensor) -> dict[str, float]:
        """One step of the optimizer on this process's share of a batch; the figures are for the log.

        Raises:
            UserError: if the loss is no longer a number.
        """
        started, recipe, device = time.perf_counter(), self.recipe, self.world.device
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        x = to_input(pictures.to(device, non_blocking=True), self.memory_format)  # [B, 3, S, S] in 0..1
        y = targets.to(device, non_blocking=True)
        if recipe.task == "classify":
            y = smoothed_one_hot(y, len(self.data.labels), recipe.label_smoothing)  # [B, C]
        random = np.random.default_rng([self.run.seed, 0, self.step, self.world.rank])
        x, y = mix(x, y, mixup=recipe.mixup, cutmix=recipe.cutmix, random=random)
        total = 0.0
        for part, (part_x, part_y) in enumerate(
            zip(x.chunk(recipe.accumulate), y.chunk(recipe.accumulate), strict=True)
        ):
            with self._gathers_gradients(part == recipe.accumulate - 1):
                loss = self._loss(part_x, part_y)
                self.scaler.scale(loss * self._loss_share()).backward()
            total += loss.item() / (recipe.accumulate if recipe.task == "classify" else 1)
        if not np.isfinite(total):
            raise UserError(f"the loss is {total} at step {self.step + 1}: lower the learning rate")
        if recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        lr = float(self.schedule.get_last_lr()[0])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        speed = len(pictures) * self.world.size / (time.perf_counter() - started)
        return {"loss": total, "lr": lr, "images_per_s": round(speed, 1)}

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        dtype = AUTOCAST.get(self.recipe.precision)
        with torch.autocast(self.world.device.type, dtype, enabled=dtype is not None):
            logits = self.parallel(x)  # [B, C]
        logits = logits.float()
        return F.cross_entropy(logits, y) if self.recipe.task == "classify" else asymmetric_loss(logits, y)

    def _loss_share(self) -> float:
        """Parts of a mean are averaged, those of a sum added; processes' gradients are averaged in either case."""
        return 1 / self.recipe.accumulate if self.recipe.task == "classify" else float(self.world.size)

    @contextmanager
    def _gathers_gradients(self, yes: bool) -> Iterator[None]:
        if isinstance(self.parallel, DistributedDataParallel) and not yes:
            with self.parallel.no_sync():
                yield
        else:
            yield

    def end_epoch(self, best: Path) -> dict[str, float]:
        """Judge the weights and their average on the validation pictures; the best so far go to ``best``."""
        self.world.share_buffers(self.model)
        candidates: dict[str, TResNet] = {"": self.model}
        if self.average is not None:
            self.world.share_buffers(self.average)
            candidates["ema_"] = self.average.module  # type: ignore[assignment]
        tags = self.recipe.task == "tag"
        targets = all_targets(self.data.val, tags=tags)
        told: dict[str, float] = {}
        for prefix, model in candidates.items():
            logits = predict(
                model, self.data.val, self.facts.preprocessing, self.world, tags=tags, workers=self.run.workers
            )
            facts = calibrate(self.facts, logits, targets)
            figures = judge(facts, logits, targets).figures
            told |= {f"{prefix}{name}": value for name, value in figures.items()}
            score = figures["map" if tags else "top1"]
            if score >= self.best_score:  # of equals the later, which has seen more
                self.best_score = score
                if self.world.is_first:
                    save_checkpoint(best, facts, _on_cpu(model.state_dict()), held_out=self.data.held_out)
        return told

    def save(self, last: Path) -> None:
        """All that :meth:`resume` needs, written by the first process."""
        if not self.world.is_first:
            return
        training = {
            "step": self.step,
            "seconds": self.seconds,
            "best_score": self.best_score,
            "recipe": _as_plain(self.recipe),
            "pictures": len(self.data.train),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "rng": torch.get_rng_state(),
        }
        save_checkpoint(last, self.facts, _on_cpu(self.model.state_dict()), training, held_out=self.data.held_out)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where ``checkpoint`` was saved.

        Raises:
            UserError: if it is of a run with other options or other data.
        """
        state = checkpoint.training or {}
        same = (state.get("recipe"), state.get("pictures")) == (_as_plain(self.recipe), len(self.data.train))
        if checkpoint.facts != self.facts or not same:
            raise UserError(
                f"{checkpoint.path} is of a run with other options or data: resume it with the same recipe, seed, "
                "sizes and data"
            )
        self.model.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["rng"])
        self.step, self.best_score = int(state["step"]), float(state["best_score"])
        self.spent_s = float(state["seconds"])
        logger.info("resuming after step %d of %d", self.step, self.steps)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on weights of two dimensions and more; none on norms and biases (what ASL's code calls true)."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.learning_rate, fused=True)


def _as_plain(recipe: Recipe) -> dict[str, Any]:
    """What must be equal for a run to go on; told as it was when the run began."""
    return {**replace(recipe, expected="").__dict__}


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in state.items()}


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM that came; a second one stops at once."""
    came: list[int] = []

    def remember(number: int, _: Any) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
