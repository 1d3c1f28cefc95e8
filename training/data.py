"""Pictures and targets for a recipe, or from a folder.

Everything that is evaluated goes through :func:`tresnet.picture.prepare` as an encoded file, as in the gateway.
A split is arrays: ``uint8 [N, S, S, 3]`` pictures, ``int64 [N]`` classes or ``float32 [N, C]`` labels.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from training.recipes import Recipe
from tresnet.errors import UserError
from tresnet.picture import PictureError, Preprocessing, prepare

Pixels = npt.NDArray[np.uint8]
Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_LABELS = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
DIGIT_LABELS = [str(digit) for digit in range(10)]
_FILTERS = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Split:
    """Pictures ready for the network, and what is right for each."""

    pictures: Pixels  # [N, S, S, 3]
    targets: Targets  # [N] classes or [N, C] labels

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class DataSet:
    """What a recipe trains on: fresh training pictures for each epoch, and two splits that training never sees."""

    labels: list[str]
    train: Callable[[np.random.Generator], Split]
    val: Split
    test: Split
    test_files: list[tuple[bytes, list[str]]]
    """The held-out pictures as PNG files with their labels, for ``RUN_DIR/test``; may be empty."""


def load_data(recipe: Recipe, how: Preprocessing, seed: int, folder: Path | None) -> DataSet:
    """The data of ``recipe``, split by ``seed``.

    Raises:
        UserError: if the data is not there.
    """
    if recipe.name == "fashion":
        return _fashion(how, seed, folder or FASHION_FOLDER)
    if folder is not None:
        raise UserError(f"recipe {recipe.name!r} brings its own data: leave --data out")
    return _digits(how, seed) if recipe.name == "digits" else _multidigits(recipe, how, seed)


def encode_png(picture: Pixels) -> bytes:
    """``uint8 [H, W]`` or ``[H, W, 3]`` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _prepare_all(files: list[bytes], how: Preprocessing) -> Pixels:
    return np.stack([prepare(file, how).pixels for file in files])


def _load_digits(seed: int) -> Iterator[tuple[Pixels, npt.NDArray[np.int64]]]:
    """Train (1,257), validation (180) and test (360) digits: ``uint8 [N, 8, 8]`` and their classes."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    classes = digits.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(classes)), test_size=360, random_state=seed, stratify=classes)
    train, val = train_test_split(rest, test_size=180, random_state=seed, stratify=classes[rest])
    for part in (train, val, test):
        yield pixels[part], classes[part]


def _digits(how: Preprocessing, seed: int) -> DataSet:
    (train_x, train_y), (val_x, val_y), (test_x, test_y) = _load_digits(seed)
    side = how.image_size

    def train(random: np.random.Generator) -> Split:
        return Split(np.stack([_vary_digit(digit, side, random) for digit in train_x]), train_y)

    val_files, test_files = ([encode_png(_enlarge(digit)) for digit in part] for part in (val_x, test_x))
    return DataSet(
        DIGIT_LABELS,
        train,
        Split(_prepare_all(val_files, how), val_y),
        Split(_prepare_all(test_files, how), test_y),
        [(file, [DIGIT_LABELS[y]]) for file, y in zip(test_files, test_y, strict=True)],
    )


def _enlarge(digit: Pixels, side: int = 64) -> Pixels:
    """An 8x8 digit as people would look at it."""
    return np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC))


def _vary_digit(digit: Pixels, side: int, random: np.random.Generator) -> Pixels:
    """The digit as someone else may have drawn it: another filter, a little turned, scaled and moved."""
    resample = _FILTERS[random.integers(len(_FILTERS))]
    image = Image.fromarray(digit).resize((64, 64), resample)
    angle, scale = np.deg2rad(random.uniform(-10, 10)), random.uniform(0.92, 1.08)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    dx, dy = random.uniform(-3, 3, size=2)
    image = image.transform(
        (64, 64),
        Image.Transform.AFFINE,
        (cos, -sin, 32 - 32 * cos + 32 * sin + dx, sin, cos, 32 - 32 * sin - 32 * cos + dy),
        Image.Resampling.BILINEAR,
    )
    grey = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    return np.repeat(grey[:, :, None], 3, axis=2)


def _multidigits(recipe: Recipe, how: Preprocessing, seed: int) -> DataSet:
    (train_x, train_y), (val_x, val_y), (test_x, test_y) = _load_digits(seed)
    count = recipe.pictures_per_epoch or 1920

    def train(random: np.random.Generator) -> Split:
        canvases, targets = _canvases(train_x, train_y, count, random)
        return Split(_prepare_all([encode_png(canvas) for canvas in canvases], how), targets)

    def held_out(
        pixels: Pixels, classes: npt.NDArray[np.int64], number: int
    ) -> tuple[list[bytes], npt.NDArray[np.float32]]:
        canvases, targets = _canvases(pixels, classes, 500, np.random.default_rng([seed, number]))
        return [encode_png(canvas) for canvas in canvases], targets

    val_files, val_targets = held_out(val_x, val_y, 1)
    test_files, test_targets = held_out(test_x, test_y, 2)
    return DataSet(
        DIGIT_LABELS,
        train,
        Split(_prepare_all(val_files, how), val_targets),
        Split(_prepare_all(test_files, how), test_targets),
        [
            (file, [DIGIT_LABELS[i] for i in np.flatnonzero(target)])
            for file, target in zip(test_files, test_targets, strict=True)
        ],
    )


def _canvases(
    pixels: Pixels, classes: npt.NDArray[np.int64], count: int, random: np.random.Generator
) -> tuple[list[Pixels], npt.NDArray[np.float32]]:
    """``count`` canvases of 80x80 pixels with one to four digits, each in a quarter of its own."""
    canvases: list[Pixels] = []
    targets = np.zeros((count, 10), np.float32)
    for target in targets:
        canvas = np.zeros((80, 80), np.uint8)
        for quarter in random.permutation(4)[: random.integers(1, 5)]:
            chosen = random.integers(len(classes))
            side = int(random.integers(32, 40))
            top, left = (
                40 * (quarter // 2) + random.integers(40 - side + 1),
                40 * (quarter % 2) + random.integers(40 - side + 1),
            )
            resample = _FILTERS[random.integers(1, len(_FILTERS))]
            canvas[top : top + side, left : left + side] = np.asarray(
                Image.fromarray(pixels[chosen]).resize((side, side), resample)
            )
            target[classes[chosen]] = 1.0
        canvases.append(canvas)
    return canvases, targets


def _fashion(how: Preprocessing, seed: int, folder: Path) -> DataSet:
    pixels, classes = read_idx(folder, "train")
    test_x, test_y = read_idx(folder, "t10k")
    train_part, val_part = train_test_split(
        np.arange(len(classes)), test_size=5000, random_state=seed, stratify=classes
    )
    prepared = _prepare_all([encode_png(picture) for picture in pixels], how)

    def train(random: np.random.Generator) -> Split:
        batch = prepared[train_part].copy()
        mirrored = random.random(len(batch)) < 0.5
        batch[mirrored] = batch[mirrored, :, ::-1]
        return Split(batch, classes[train_part])

    test = Split(_prepare_all([encode_png(picture) for picture in test_x], how), test_y)
    return DataSet(FASHION_LABELS, train, Split(prepared[val_part], classes[val_part]), test, [])


def read_idx(folder: Path, part: str) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """MNIST's idx files: ``part`` is ``train`` or ``t10k``; gives ``uint8 [N, 28, 28]`` and classes.

    Raises:
        UserError: if the folder does not hold them.
    """
    try:
        images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    except OSError as error:
        raise UserError(
            f"{folder} holds no {part}-images-idx3-ubyte.gz: apt-get install dataset-fashion-mnist, or give --data DIR"
        ) from error
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def read_folder(folder: Path, labels: list[str], how: Preprocessing, *, tags: bool) -> Split:
    """Pictures to evaluate on: idx files, ``labels.csv`` (path, labels split by ``|``), or ``<label>/<picture>``.

    Raises:
        UserError: if the folder is none of these, a label is unknown, or pictures cannot be read (named).
    """
    if (folder / "t10k-images-idx3-ubyte.gz").exists():
        pixels, classes = read_idx(folder, "t10k")
        return Split(_prepare_all([encode_png(picture) for picture in pixels], how), classes)
    entries = list(_entries(folder))
    if not entries:
        raise UserError(f"{folder} holds no pictures: expected <label>/<picture> folders or a labels.csv")
    unknown = sorted({label for _, names in entries for label in names} - set(labels))
    if unknown:
        raise UserError(f"{folder} has labels that the checkpoint does not know: {', '.join(unknown[:5])}")
    pictures: list[Pixels] = []
    bad: list[str] = []
    for path, _ in entries:
        try:
            pictures.append(prepare(path.read_bytes(), how).pixels)
        except (PictureError, OSError) as error:
            bad.append(f"{path} ({error})")
    if bad:
        raise UserError(f"{len(bad)} pictures cannot be read: {'; '.join(bad[:5])}")
    indices = [[labels.index(name) for name in names] for _, names in entries]
    if not tags:
        return Split(np.stack(pictures), np.array([index[0] for index in indices], np.int64))
    targets = np.zeros((len(entries), len(labels)), np.float32)
    for target, index in zip(targets, indices, strict=True):
        target[index] = 1.0
    return Split(np.stack(pictures), targets)


def _entries(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    table = folder / "labels.csv"
    if table.exists():
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield folder / row["path"], [name for name in row["labels"].split("|") if name]
    elif folder.is_dir():
        for label in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from ((path, [label.name]) for path in sorted(label.iterdir()) if path.is_file())


def write_files(folder: Path, files: list[tuple[bytes, list[str]]], *, tags: bool) -> None:
    """The held-out pictures in the form that :func:`read_folder` reads."""
    rows = []
    for number, (data, labels) in enumerate(files):
        path = folder / (f"{number:04}.png" if tags else f"{labels[0]}/{number:04}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        rows.append((path.name, "|".join(labels)))
    if tags and rows:
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "labels"), *rows])
