"""The recipes that bring their own pictures: scikit-learn's handwritten digits, alone or several on a canvas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.pictures import Pictures, Pixels, encode_png, in_memory
from tresnet.picture import Preprocessing, prepare

DIGIT_LABELS = [str(digit) for digit in range(10)]
_FILTERS = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
_HELD_OUT_CANVASES = 500

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Placed:
    """A digit on a canvas: its label, and the square that its picture fills, as left, top, right, bottom."""

    label: int
    box: tuple[int, int, int, int]


Canvas = tuple[Pixels, list[Placed]]


@dataclass(frozen=True)
class DigitVariations:
    """One training picture for each digit, as someone else may have drawn it: turned, scaled and moved a little."""

    pixels: Pixels  # [N, 8, 8]
    classes: Classes  # [N]
    side: int

    def __len__(self) -> int:
        return len(self.pixels)

    def sample(self, index: int, random: np.random.Generator) -> tuple[Pixels, list[int]]:
        resample = _FILTERS[random.integers(len(_FILTERS))]
        image = Image.fromarray(self.pixels[index]).resize((64, 64), resample)
        angle, scale = np.deg2rad(random.uniform(-10, 10)), random.uniform(0.92, 1.08)
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        dx, dy = random.uniform(-3, 3, size=2)
        image = image.transform(
            (64, 64),
            Image.Transform.AFFINE,
            (cos, -sin, 32 - 32 * cos + 32 * sin + dx, sin, cos, 32 - 32 * sin - 32 * cos + dy),
            Image.Resampling.BILINEAR,
        )
        grey = np.asarray(image.resize((self.side, self.side), Image.Resampling.BILINEAR))
        return np.repeat(grey[:, :, None], 3, axis=2), [int(self.classes[index])]


@dataclass(frozen=True)
class FreshCanvases:
    """``count`` new canvases each epoch, of digits from the training part."""

    pixels: Pixels
    classes: Classes
    how: Preprocessing
    count: int

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, random: np.random.Generator) -> tuple[Pixels, list[int]]:
        canvas, digits = _canvas(self.pixels, self.classes, random)
        return prepare(encode_png(canvas), self.how).pixels, _labels(digits)


def digits(how: Preprocessing, seed: int) -> tuple[DigitVariations, Pictures, Pictures]:
    """Training (1,257), validation (180) and test (360) digits."""
    (train_x, train_y), *held_out = _load_digits(seed)
    val, test = (
        in_memory(DIGIT_LABELS, [encode_png(_enlarge(digit)) for digit in x], y[:, None].tolist()) for x, y in held_out
    )
    return DigitVariations(train_x, train_y, how.image_size), val, test


def multidigits(how: Preprocessing, seed: int, count: int) -> tuple[FreshCanvases, Pictures, Pictures]:
    """Canvases with one to four digits; those of validation and test have digits that training never sees."""
    training, *_ = _load_digits(seed)
    val, test = (
        in_memory(DIGIT_LABELS, [encode_png(canvas) for canvas, _ in part], [_labels(digits) for _, digits in part])
        for part in held_out_canvases(seed)
    )
    return FreshCanvases(*training, how, count), val, test


def held_out_canvases(seed: int) -> tuple[list[Canvas], list[Canvas]]:
    """The canvases of validation and test, and where on them each digit is."""
    _, *held_out = _load_digits(seed)
    val, test = (
        [_canvas(pixels, classes, random) for _ in range(_HELD_OUT_CANVASES)]
        for (pixels, classes), random in (
            (part, np.random.default_rng([seed, n])) for n, part in enumerate(held_out, 1)
        )
    )
    return val, test


def _load_digits(seed: int) -> Iterator[tuple[Pixels, Classes]]:
    """Train, validation and test digits: ``uint8 [N, 8, 8]`` and their classes."""
    from sklearn.datasets import load_digits  # a second of loading, which only these recipes need
    from sklearn.model_selection import train_test_split

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    classes = data.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(classes)), test_size=360, random_state=seed, stratify=classes)
    train, val = train_test_split(rest, test_size=180, random_state=seed, stratify=classes[rest])
    for part in (train, val, test):
        yield pixels[part], classes[part]


def _enlarge(digit: Pixels, side: int = 64) -> Pixels:
    """An 8x8 digit as people would look at it."""
    return np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC))


def _labels(digits: list[Placed]) -> list[int]:
    return sorted({digit.label for digit in digits})


def _canvas(pixels: Pixels, classes: Classes, random: np.random.Generator) -> Canvas:
    """A canvas of 80x80 pixels with one to four digits, each in a quarter of its own."""
    canvas = np.zeros((80, 80), np.uint8)
    placed = []
    for quarter in random.permutation(4)[: random.integers(1, 5)]:
        chosen = random.integers(len(classes))
        side = int(random.integers(32, 40))
        top = 40 * (quarter // 2) + random.integers(40 - side + 1)
        left = 40 * (quarter % 2) + random.integers(40 - side + 1)
        resample = _FILTERS[random.integers(1, len(_FILTERS))]
        digit = Image.fromarray(pixels[chosen]).resize((side, side), resample)
        canvas[top : top + side, left : left + side] = np.asarray(digit)
        placed.append(Placed(int(classes[chosen]), (int(left), int(top), int(left) + side, int(top) + side)))
    return canvas, placed
