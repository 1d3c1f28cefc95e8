"""One run's state: what a step of training changes, what a checkpoint must hold of it, and how it is taken up again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from training.card import Making, device_name
from training.data import DataSet, Targets, all_targets, evaluation_batches, training_batches
from training.distributed import World
from training.evaluation import calibrate, judge, predict, to_input
from training.losses import asymmetric_loss
from training.metrics import Logits
from training.optimizer import create_optimizer, create_schedule
from training.recipes import Recipe
from training.runlog import RunLog
from tresnet.checkpoint import Checkpoint, ModelFacts, initialise, load_checkpoint, save_checkpoint
from tresnet.errors import UserError
from tresnet.inplace_abn import resolve_norm
from tresnet.model import TResNet, create_model
from tresnet.terms import Norm

logger = logging.getLogger(__name__)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINT_EVERY_S = 600.0


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


class Trainer:
    """All that changes from step to step, and what a checkpoint must hold of it."""

    def __init__(self, run: Run, data: DataSet, world: World, resumed: Checkpoint | None = None) -> None:
        """``resumed``: where the run is to go on.

        Raises:
            UserError: if the recipe does not fit the data or the processes, or ``resumed`` is of another run.
        """
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
        tags, workers = recipe.task == "tag", run.workers
        self.step = int((resumed.training or {}).get("step", 0)) if resumed is not None else 0
        # Before the network is there, and what processes exchange for it: see where they are forked.
        self.batches = training_batches(data.train, recipe, len(data.labels), run.seed, self.step, workers, world)
        self.val_batches = evaluation_batches(data.val, recipe.preprocessing(), workers, world, tags=tags)
        if world.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # every step has the same shapes
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
        self.optimizer = create_optimizer(self.model, recipe)
        self.schedule = create_schedule(self.optimizer, recipe, self.steps)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16")
        self.init = run.init.name if run.init is not None else None
        self.best_score = -1.0
        self.spent_s, self.began_at = 0.0, time.monotonic()
        if resumed is not None:
            self.resume(resumed)

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
            init=self.init,
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
            fresh = initialise(model, init, facts.labels, inplace_abn=facts.inplace_abn)
            logger.info("initialised from %s; fresh: %s", self.run.init, ", ".join(fresh) or "nothing")
        return model.to(self.world.device, memory_format=self.memory_format)  # type: ignore[call-overload,no-any-return]

    def train_step(self, pictures: Tensor, targets: Tensor) -> dict[str, float]:
        """One step of the optimizer on this process's share of a batch; the figures are for the log.

        Raises:
            UserError: if the loss is no longer a number; the weights are spoilt then, and are not to be saved.
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
        total = torch.zeros((), device=device)
        for part, (part_x, part_y) in enumerate(
            zip(x.chunk(recipe.accumulate), y.chunk(recipe.accumulate), strict=True)
        ):
            with self._gathers_gradients(part == recipe.accumulate - 1):
                loss = self._loss(part_x, part_y) * self._loss_share()
                self.scaler.scale(loss).backward()
            total += loss.detach()
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
        # Read last: a GPU is waited for here, with all of the step's work given to it.
        if not np.isfinite(told := total.item()):
            raise UserError(f"the loss is {told} at step {self.step}: lower the learning rate")
        speed = len(pictures) * self.world.size / (time.perf_counter() - started)
        return {"loss": told, "lr": lr, "images_per_s": round(speed, 1)}

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
        """Judge the weights and their average on the validation pictures; the best so far go to ``best``.

        Raises:
            UserError: if they no longer answer with numbers.
        """
        self.world.share_buffers(self.model)
        candidates: dict[str, TResNet] = {"": self.model}
        if self.average is not None:
            self.world.share_buffers(self.average.module)
            candidates["ema_"] = self.average.module  # type: ignore[assignment]
        tags = self.recipe.task == "tag"
        answers = predict([*candidates.values()], self.val_batches, len(self.data.val), self.world)
        judged = self.world.of_first(lambda: self._judge(candidates, answers, all_targets(self.data.val, tags=tags)))
        main = "map" if tags else "top1"
        chosen = max(reversed(judged), key=lambda prefix: judged[prefix][1][main])  # of equals the average
        facts, figures = judged[chosen]
        if figures[main] >= self.best_score:  # of equals the later, which has seen more
            self.best_score = figures[main]
            if self.world.is_first:
                weights = _on_cpu(candidates[chosen].state_dict())
                save_checkpoint(best, facts, weights, held_out=self.data.held_out)
        return {f"{prefix}{name}": value for prefix, (_, own) in judged.items() for name, value in own.items()}

    def _judge(
        self, candidates: Iterable[str], answers: Sequence[Logits], targets: Targets
    ) -> dict[str, tuple[ModelFacts, dict[str, float]]]:
        """Each candidate's facts, calibrated, and its figures."""
        judged = {}
        for prefix, logits in zip(candidates, answers, strict=True):
            facts = calibrate(self.facts, logits, targets)
            judged[prefix] = facts, judge(facts, logits, targets).figures
        return judged

    def save(self, last: Path) -> None:
        """All that :meth:`resume` needs, written by the first process.

        Raises:
            UserError: if the weights are no numbers any more; what was saved before stays.
        """
        if not self.world.is_first:
            return
        weights = _on_cpu(self.model.state_dict())
        if not all(torch.isfinite(value).all() for value in weights.values()):
            raise UserError(f"the weights are no numbers any more after step {self.step}: lower the learning rate")
        training = {
            "step": self.step,
            "seconds": self.seconds,
            "best_score": self.best_score,
            "recipe": _as_plain(self.recipe),
            "init": self.init,
            "pictures": len(self.data.train),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "rng": torch.get_rng_state(),
        }
        save_checkpoint(last, self.facts, weights, training, held_out=self.data.held_out)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where ``checkpoint`` was saved.

        Raises:
            UserError: if it is of a run with other options or other data.
        """
        state = checkpoint.training or {}
        began_with = state.get("init", self.init)
        other = [
            *_differences(state.get("recipe", {}), _as_plain(self.recipe)),
            *_differences(checkpoint.facts.model_dump(), self.facts.model_dump()),
            *_differences(
                {"pictures to train on": state.get("pictures"), "init": began_with},
                {"pictures to train on": len(self.data.train), "init": self.init or began_with},
            ),
        ]
        if other:
            raise UserError(
                f"{checkpoint.path} is of a run with other options or data; resume it with the same. "
                f"Of the run, and of now: {'; '.join(dict.fromkeys(other))}"
            )
        self.model.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["rng"])
        self.init = began_with
        self.step, self.best_score = int(state["step"]), float(state["best_score"])
        self.spent_s = float(state["seconds"])
        logger.info("resuming after step %d of %d", self.step, self.steps)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not equal, each with both values, as short as one can read them."""
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return [f"{name.replace('_', ' ')} {str(before.get(name))[:60]}, {str(now.get(name))[:60]}" for name in names]


def _as_plain(recipe: Recipe) -> dict[str, Any]:
    """What must be equal for a run to go on; told as it was when the run began."""
    return {**replace(recipe, expected="").__dict__}


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in state.items()}
