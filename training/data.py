"""What a recipe trains and is judged on, and batches of it: the same ones whenever and on however many processes.

A picture's variation depends on the seed, the epoch and the picture's index alone, and a batch on the seed, the
epoch and the step: training can stop after any step and go on with the next as if nothing had been.
"""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training import demos
from training.augment import Augmentation
from training.distributed import World
from training.held_out import remember
from training.layouts import open_pictures
from training.pictures import Pictures, Pixels, without_bad
from training.recipes import Recipe
from training.stopping import leave_stops_to_parent, stops_held
from tresnet.checkpoint import HeldOut
from tresnet.errors import UserError
from tresnet.picture import Preprocessing, prepare

logger = logging.getLogger(__name__)

Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]
FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
FASHION_LABELS = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
EVALUATION_BATCH = 64
_GLOO_LETS_GO_S = 0.2


class Source(Protocol):
    """Pictures ready for the network, made on demand."""

    def __len__(self) -> int: ...

    def sample(self, index: int, random: np.random.Generator) -> tuple[Pixels, Sequence[int]]:
        """``uint8 [S, S, 3]`` and the indices of the labels that are right for it."""


@dataclass(frozen=True)
class Augmented:
    """Files, varied."""

    pictures: Pictures
    augmentation: Augmentation

    def __len__(self) -> int:
        return len(self.pictures)

    def sample(self, index: int, random: np.random.Generator) -> tuple[Pixels, Sequence[int]]:
        return self.augmentation(self.pictures.read(index), random), self.pictures.targets[index]


@dataclass(frozen=True)
class Prepared:
    """Files, prepared as the gateway prepares them."""

    pictures: Pictures
    how: Preprocessing

    def __len__(self) -> int:
        return len(self.pictures)

    def sample(self, index: int, random: np.random.Generator) -> tuple[Pixels, Sequence[int]]:
        return prepare(self.pictures.read(index), self.how).pixels, self.pictures.targets[index]


@dataclass(frozen=True)
class DataSet:
    """What a recipe trains on, and two splits that training never sees."""

    labels: list[str]
    train: Source
    val: Pictures
    test: Pictures
    origin: str
    """Where the pictures come from and who split them, in a sentence for people."""
    judged_on_val: bool = False
    """Whether there are no test pictures of their own: ``test`` is ``val``, by which the best epoch is chosen."""
    held_out: HeldOut | None = None
    """How to find the test pictures again; None where the recipe brings its data."""
    own_test: bool = False
    """Whether the test pictures are the recipe's own, to be left in the run's folder for people to try."""


def load_data(
    recipe: Recipe,
    how: Preprocessing,
    seed: int,
    where: str | None,
    *,
    checked_by: World | None = None,
    skip_bad: bool = False,
) -> DataSet:
    """The data of ``recipe``; ``where`` as in :mod:`training.layouts`. What is not split yet, ``seed`` splits.

    With ``checked_by`` every picture is decoded once, by all processes together.

    Raises:
        UserError: if the data is not there, does not fit the recipe, or pictures in it cannot be read.
    """
    if recipe.name in ("digits", "multidigits"):
        if where is not None:
            raise UserError(f"recipe {recipe.name!r} brings its own data: leave --data out")
        origin = f"scikit-learn's 1,797 handwritten digits of 8x8 pixels, split at random by the seed {seed}"
        if recipe.name == "digits":
            return DataSet(demos.DIGIT_LABELS, *demos.digits(how, seed), origin=origin, own_test=True)
        count = recipe.pictures_per_epoch or 1408
        origin = f"canvases with one to four of {origin}; new ones in each epoch of training"
        return DataSet(demos.DIGIT_LABELS, *demos.multidigits(how, seed, count), origin=origin, own_test=True)
    if where is None:
        if recipe.name != "fashion":
            raise UserError(f"recipe {recipe.name!r} needs --data: a folder of pictures, or one of the other forms")
        if not Path(FASHION_FOLDER).is_dir():
            raise UserError(f"{FASHION_FOLDER} is not there: apt-get install dataset-fashion-mnist, or give --data DIR")
        where = FASHION_FOLDER
    splits = open_pictures(where)
    if recipe.name == "fashion":
        splits = {name: part.relabelled(FASHION_LABELS, by_order=True) for name, part in splits.items()}
    if checked_by is not None:
        looked_at = {name: without_bad(part, skip_bad=skip_bad, world=checked_by) for name, part in splits.items()}
        splits = {name: part for name, part in looked_at.items() if len(part)}
    _tell_unused(where, splits, is_first=checked_by is None or checked_by.is_first)
    train, val, test = _three_splits(where, splits, recipe, seed)
    drawn = [name for name, part in (("validation", "val"), ("test", "test")) if part not in splits]
    if test is None and "all" not in splits:
        drawn = [name for name in drawn if name != "test"]
    origin = f"{Path(where).name or Path(where).resolve().name}, " + (
        f"{' and '.join(drawn)} pictures drawn from it at random by the seed {seed}" if drawn else "split as it came"
    )
    if checked_by is None or checked_by.is_first:
        judged = f"{len(test)} held out to judge it" if test is not None else "the same ones to judge it"
        logger.info("%s: %d labels, %d pictures to train on, %d to choose the best epoch by, %s",
                    origin, len(train.labels), len(train), len(val), judged)  # fmt: skip
    judges = test or val
    is_drawn = ("test" if test is not None else "val") not in splits
    return DataSet(
        train.labels,
        Augmented(train, recipe.augmentation(how)),
        val,
        judges,
        origin,
        judged_on_val=test is None,
        held_out=remember(where, judges) if is_drawn else HeldOut(data=where),
    )


def _tell_unused(where: str, splits: dict[str, Pictures], *, is_first: bool) -> None:
    """Splits of other names train nothing, and some may be there for want of a name in a table's row.

    Raises:
        UserError: if pictures of no split lie beside those that are to train on.
    """
    if "train" in splits and "all" in splits:
        raise UserError(
            f"{where}: {len(splits['all'])} pictures are of no split, and {len(splits['train'])} of 'train': "
            "give each picture its split"
        )
    unused = {name: len(part) for name, part in splits.items() if name not in ("train", "val", "test", "all")}
    if unused and is_first:
        told = ", ".join(f"{count} of {name!r}" for name, count in unused.items())
        logger.warning("%s: not used, as splits are called train, val and test: %s", where, told)


def _three_splits(
    where: str, splits: dict[str, Pictures], recipe: Recipe, seed: int
) -> tuple[Pictures, Pictures, Pictures | None]:
    """Training, validation and test pictures; no test pictures where the data is split and has none."""
    train = splits.get("train") or splits.get("all")
    if train is None:
        raise UserError(f"{where} has no training pictures; its splits are {', '.join(splits)}")
    used = [splits[name] for name in ("train", "all", "val", "test") if name in splits]
    if recipe.task == "classify" and any(len(target) != 1 for part in used for target in part.targets):
        raise UserError(f"{where} has pictures without a label or with several: train with the recipe coco")
    if recipe.task == "classify" and len(train.labels) < 2:
        raise UserError(f"{where} has one label alone, {train.labels[0]!r}: there is nothing to tell apart")
    val, test = splits.get("val"), splits.get("test")
    if val is None:
        train, val = _split(train, min(0.1, 5000 / len(train)), seed)
    if test is None and "all" in splits:
        train, test = _split(train, 0.1, seed)
    for name, part in (("validation", val), ("test", test)):
        if part is not None and not any(part.targets):
            raise UserError(
                f"{where}: none of the {len(part)} {name} pictures has a label, so that nothing can be measured on "
                "them: label some, or give another --seed where they were drawn"
            )
    val, test = (part and part.relabelled(train.labels, of="the training data") for part in (val, test))
    assert val is not None  # noqa: S101  (it was there, or drawn)
    return train, val, test


def _split(pictures: Pictures, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """The larger and the smaller part; every class in both where pictures have one label and there are enough.

    Of a class with one picture, that is in the larger.
    """
    from sklearn.model_selection import train_test_split  # a second of loading, which split data need not wait for

    smaller = max(1, round(share * len(pictures)))
    if smaller >= len(pictures):
        raise UserError("too few labelled pictures to train on and to hold some out")
    classes = np.array([target[0] if len(target) == 1 else -1 for target in pictures.targets])
    names, counts = np.unique(classes, return_counts=True)
    # The only picture of its class is to train on, if those of the other classes can be shared out.
    is_alone = np.isin(classes, names[counts == 1])
    can_stratify = -1 not in names and smaller >= (counts > 1).sum() and smaller < (~is_alone).sum()
    shared = np.flatnonzero(~is_alone) if can_stratify else np.arange(len(pictures))
    larger, rest = train_test_split(
        shared, test_size=smaller, random_state=seed, stratify=classes[shared] if can_stratify else None
    )
    return pictures.select([*larger, *np.setdiff1d(np.arange(len(pictures)), shared)]), pictures.select(rest)


class _Samples(Dataset[tuple[Tensor, Tensor]]):
    """A source's samples as tensors, by ``(epoch, index)``."""

    def __init__(self, source: Source, num_classes: int, seed: int, *, tags: bool) -> None:
        self.source, self.num_classes, self.seed, self.tags = source, num_classes, seed, tags

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        pixels, labels = self.source.sample(index, np.random.default_rng([self.seed, 1 + epoch, index]))
        if not self.tags:
            return torch.from_numpy(pixels.copy()), torch.tensor(labels[0])
        target = torch.zeros(self.num_classes)
        target[list(labels)] = 1.0
        return torch.from_numpy(pixels.copy()), target


@dataclass(frozen=True)
class _Steps:
    """For each step from ``first`` to the run's end, this process's part of the batch."""

    pictures: int
    batch_size: int
    epochs: int
    first: int
    seed: int
    world: World

    @property
    def in_epoch(self) -> int:
        return self.pictures // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.first // self.in_epoch, self.epochs):
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.pictures)
            done = max(0, self.first - epoch * self.in_epoch)
            for step in range(done, self.in_epoch):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                yield [(epoch, int(index)) for index in batch[self.world.rank :: self.world.size]]

    def __len__(self) -> int:
        return self.epochs * self.in_epoch - self.first


def training_batches(
    source: Source, recipe: Recipe, num_classes: int, seed: int, first_step: int, workers: int, world: World
) -> Iterator[tuple[Tensor, Tensor]]:
    """From step ``first_step`` on: ``uint8 [B, S, S, 3]``, and ``int64 [B]`` classes or ``float32 [B, C]`` labels."""
    steps = _Steps(len(source), recipe.batch_size, recipe.epochs, first_step, seed, world)
    samples = _Samples(source, num_classes, seed, tags=recipe.task == "tag")
    return _started(_loader(samples, steps, workers), world)


def evaluation_batches(
    pictures: Pictures, how: Preprocessing, workers: int, world: World, *, tags: bool
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Every ``world.size``-th batch, of the same pictures whatever the number of processes; as often as one likes."""
    starts = range(0, len(pictures), EVALUATION_BATCH)[world.rank :: world.size]
    batches: list[list[tuple[int, int]]] = []
    samples = _Samples(Prepared(pictures, how), len(pictures.labels), 0, tags=tags)
    loader = _loader(samples, batches, workers)
    if workers:
        _started(loader, world)  # with nothing to load yet, which would lie in memory until it is asked for
    batches += [[(0, i) for i in range(start, min(start + EVALUATION_BATCH, len(pictures)))] for start in starts]
    return loader


def _loader(samples: _Samples, batches: Any, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    # Forked workers inherit the sources as they are; what a source reads lies in files.
    context = "fork" if workers else None
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        multiprocessing_context=context,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the weights' own numbers are not to depend on how pictures are loaded
        worker_init_fn=leave_stops_to_parent,
    )


def _started(loader: DataLoader[tuple[Tensor, Tensor]], world: World) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches, its processes forked: once in a run, for each time is a small risk.

    A thread of gloo's that lets go of a tensor just then holds a lock of Python's, for which the forked process would
    wait without end (CPython 3.11, in ``_PyThreadState_DeleteExcept``). They do so right after a collective.
    """
    if world.size > 1:
        time.sleep(_GLOO_LETS_GO_S)
    with stops_held():
        return iter(loader)


def all_targets(pictures: Pictures, *, tags: bool) -> Targets:
    """``int64 [N]`` classes or ``float32 [N, C]`` labels."""
    if not tags:
        return np.array([target[0] for target in pictures.targets], np.int64)
    targets = np.zeros((len(pictures), len(pictures.labels)), np.float32)
    for row, target in zip(targets, pictures.targets, strict=True):
        row[list(target)] = 1.0
    return targets


def write_pictures(folder: Path, pictures: Pictures, *, tags: bool) -> None:
    """Pictures as PNG files that :func:`training.layouts.open_pictures` reads."""
    rows = []
    for number, target in enumerate(pictures.targets):
        names = [pictures.labels[index] for index in target]
        path = folder / (f"{number:04}.png" if tags else f"{names[0]}/{number:04}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures.read(number))
        rows.append((path.name, "|".join(names)))
    if tags:
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "labels"), *rows])
