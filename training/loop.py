"""The training loop: a recipe and a seed enter; checkpoints, figures and curves in RUN_DIR leave."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from training.data import DataSet, Split, load_data, write_files
from training.losses import asymmetric_loss
from training.metrics import best_thresholds, evaluate_scores
from training.recipes import Recipe
from tresnet.checkpoint import CheckpointError, ModelFacts, load_checkpoint, save_checkpoint
from tresnet.contract import Task
from tresnet.errors import UserError
from tresnet.inplace_abn import Norm, resolve_norm
from tresnet.model import TResNet, create_model
from tresnet.picture import Preprocessing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A recipe as it is to be run."""

    recipe: Recipe
    out: Path
    seed: int
    data: Path | None
    init: Path | None
    resume: bool
    norm: Norm
    device: torch.device


def train(run: Run) -> dict[str, float]:
    """Train; returns the figures on the held-out test split.

    Raises:
        UserError: if the run cannot be started or resumed as asked.
        OSError: if RUN_DIR cannot be written; the last checkpoint stays whole.
    """
    recipe, last, best = run.recipe, run.out / "last.pt", run.out / "best.pt"
    if last.exists() and not run.resume:
        raise UserError(f"{run.out} holds a run already: go on with --resume, or choose another --out")
    if run.resume and not last.exists():
        raise UserError(f"{last}: there is no run to resume")
    run.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    how = Preprocessing(image_size=recipe.image_size)
    data = load_data(recipe, how, run.seed, run.data)
    norm = resolve_norm(run.norm, run.device)
    facts = ModelFacts(
        arch=recipe.arch,
        task=recipe.task,
        labels=data.labels,
        preprocessing=how,
        inplace_abn=norm != "bn",
        recipe=recipe.name,
        seed=run.seed,
    )
    model = create_model(recipe.arch, len(data.labels), norm).to(run.device)
    if run.init is not None:
        _initialise_from(model, run.init)
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    pictures = recipe.pictures_per_epoch or len(data.train(np.random.default_rng(0)))
    steps = pictures // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps)
    epoch, best_score = 0, -1.0
    if run.resume:
        epoch, best_score = _resume(last, facts, recipe, model, optimizer, schedule)

    write_files(run.out / "test", data.test_files, tags=recipe.task == "tag")
    with _progress(recipe, epoch, steps) as progress, (run.out / "metrics.jsonl").open("a") as log:
        for current in range(epoch, recipe.epochs):
            _train_epoch(run, model, optimizer, schedule, data, current, steps, progress, log)
            figures, thresholds = _validate(model, recipe.task, data.val, run.device)
            log.write(json.dumps({"epoch": current + 1, **{f"val_{k}": v for k, v in figures.items()}}) + "\n")
            log.flush()
            logger.info("epoch %d of %d: %s", current + 1, recipe.epochs, _words(figures))
            facts = facts.model_copy(update={"thresholds": thresholds})
            weights = {key: value.cpu() for key, value in model.state_dict().items()}
            score = figures["top1" if recipe.task == "classify" else "map"]
            if score >= best_score:  # of equals the later, which has seen more
                best_score = score
                save_checkpoint(best, facts, weights)
            training = {
                "epoch": current + 1,
                "best_score": best_score,
                "epochs": recipe.epochs,
                "batch_size": recipe.batch_size,
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "rng": torch.get_rng_state(),
            }
            save_checkpoint(last, facts, weights, training)
    draw_curves(run.out)
    return evaluate_checkpoint(best, None, run.device, test=data.test)


def _train_epoch(
    run: Run,
    model: TResNet,
    optimizer: Any,
    schedule: Any,
    data: DataSet,
    epoch: int,
    steps: int,
    progress: Any,
    log: Any,
) -> None:
    recipe = run.recipe
    random = np.random.default_rng([run.seed, 1000 + epoch])  # an epoch's pictures depend on seed and epoch alone
    split = data.train(random)
    order = random.permutation(len(split))
    model.train()
    for step in range(steps):
        started = time.perf_counter()
        chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        x = to_input(split.pictures[chosen]).to(run.device)  # [B, 3, S, S] in 0..1
        y = torch.from_numpy(split.targets[chosen]).to(run.device)  # [B] or [B, C]
        logits = model(x)  # [B, C]
        if recipe.task == "classify":
            loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        else:
            loss = asymmetric_loss(logits, y)
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} at epoch {epoch + 1}, step {step + 1}: lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        lr = schedule.get_last_lr()[0]
        schedule.step()
        speed = len(chosen) / (time.perf_counter() - started)
        line = {"step": epoch * steps + step + 1, "loss": loss.item(), "lr": lr, "images_per_s": round(speed, 1)}
        log.write(json.dumps(line) + "\n")
        progress.update(0, advance=1, speed=f"{speed:.0f} images/s", loss=f"loss {loss.item():.3f}")


def to_input(pictures: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """``uint8 [N, S, S, 3]`` pictures to ``float32 [N, 3, S, S]`` in 0..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 255


@torch.inference_mode()
def predict(model: TResNet, task: Task, split: Split, device: torch.device) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``float32 [N, C]`` scores in 0..1."""
    model.eval()
    scores = []
    for start in range(0, len(split), 64):
        logits = model(to_input(split.pictures[start : start + 64]).to(device))
        scores.append((logits.softmax(1) if task == "classify" else logits.sigmoid()).cpu())
    return torch.cat(scores).numpy()


def _validate(
    model: TResNet, task: Task, val: Split, device: torch.device
) -> tuple[dict[str, float], list[float] | None]:
    scores = predict(model, task, val, device)
    thresholds = best_thresholds(scores, val.targets) if task == "tag" else None  # type: ignore[arg-type]
    return evaluate_scores(task, scores, val.targets, thresholds), thresholds


def evaluate_checkpoint(
    path: Path, folder: Path | None, device: torch.device, *, image_size: int | None = None, test: Split | None = None
) -> dict[str, float]:
    """A checkpoint's figures on ``folder``; without one, on its recipe's own held-out pictures.

    Raises:
        UserError: if the checkpoint or the data cannot be used.
    """
    from training.data import read_folder
    from training.recipes import find_recipe
    from tresnet.checkpoint import build_model

    checkpoint = load_checkpoint(path)
    facts = checkpoint.facts
    how = facts.preprocessing
    if image_size is not None:
        how = how.model_copy(update={"image_size": image_size})
    if folder is not None:
        test = read_folder(folder, facts.labels, how, tags=facts.task == "tag")
    elif test is None:
        if facts.recipe is None:
            raise UserError(f"{path} does not say what it was trained on: give --data DIR")
        test = load_data(find_recipe(facts.recipe), how, facts.seed or 0, None).test
    scores = predict(build_model(checkpoint).to(device), facts.task, test, device)
    return {"images": len(test), **evaluate_scores(facts.task, scores, test.targets, facts.thresholds)}


def _parameter_groups(model: TResNet, weight_decay: float) -> list[dict[str, Any]]:
    """Decay on weights of two dimensions and more; none on norms and biases."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _initialise_from(model: TResNet, path: Path) -> None:
    weights = load_checkpoint(path).weights
    own = model.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    others = sorted(own.keys() - fitting.keys())
    if any(not key.startswith("head.") for key in others):
        raise CheckpointError(f"{path} is of another architecture: {others[0]} does not fit")
    model.load_state_dict(fitting, strict=False)
    logger.info("initialised from %s; fresh: %s", path, ", ".join(others) or "nothing")


def _resume(
    last: Path, facts: ModelFacts, recipe: Recipe, model: TResNet, optimizer: Any, schedule: Any
) -> tuple[int, float]:
    checkpoint = load_checkpoint(last)
    state = checkpoint.training or {}
    same = checkpoint.facts.model_copy(update={"thresholds": None}) == facts
    if not same or (state.get("epochs"), state.get("batch_size")) != (recipe.epochs, recipe.batch_size):
        raise UserError(f"{last} is of a run with other options: resume it with the same recipe, seed and sizes")
    model.load_state_dict(checkpoint.weights)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["rng"])
    logger.info("resuming after epoch %d", state["epoch"])
    return int(state["epoch"]), float(state["best_score"])


def _progress(recipe: Recipe, epoch: int, steps: int) -> Progress:
    columns = (
        TextColumn(recipe.name),
        BarColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[loss]}"),
    )
    progress = Progress(*columns, TimeRemainingColumn())
    progress.add_task(recipe.name, total=recipe.epochs * steps, completed=epoch * steps, speed="", loss="")
    return progress


def _words(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())


def draw_curves(out: Path) -> None:
    """``metrics.jsonl`` as ``curves.png``: loss by step, and validation figures by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step" in line]
    epochs = [line for line in lines if "epoch" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot([line["step"] for line in steps], [line["loss"] for line in steps])
    left.set(title="training loss", xlabel="step", yscale="log")
    for name in sorted({key for line in epochs for key in line} - {"epoch"}):
        right.plot([line["epoch"] for line in epochs], [line[name] for line in epochs], marker="o", label=name)
    right.set(title="validation", xlabel="epoch")
    right.legend()
    figure.tight_layout()
    figure.savefig(out / "curves.png", dpi=110)
    plt.close(figure)
