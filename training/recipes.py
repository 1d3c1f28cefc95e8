"""The recipes: each a few values that train one model, with what to expect of it.

The published recipes are those of the authors' papers and tickets (TResNet, WACV 2021; ASL, ICCV 2021); their
expected scores are the papers', reached on the hardware named there, and were not repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from training.augment import Augmentation, Policy
from tresnet.errors import UserError
from tresnet.picture import Preprocessing
from tresnet.terms import Precision, ResizeMode, Task

Optimizer = Literal["adamw", "adam", "sgd"]


@dataclass(frozen=True)
class Recipe:
    """A training run but for its data and its seed."""

    name: str
    task: Task
    expected: str
    """Command, hardware, time and score."""
    image_size: int
    batch_size: int
    """Pictures in one step, over all processes and all parts of an accumulated step."""
    epochs: int
    fits_small_data: bool = False
    """Whether the batch shrinks where pictures are few, until an epoch has eight steps or a process eight pictures."""
    wants_init: bool = False
    """Whether its score is one from weights that were trained before."""
    pictures_per_epoch: int | None = None
    """For pictures that are made up as training goes; ``None``: every training picture once."""
    arch: str = "tresnet_m"

    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    """The highest of the one-cycle schedule (Smith, 2018)."""
    rise: float = 0.3
    """Share of the steps in which the learning rate goes up to it."""
    weight_decay: float = 1e-4
    """On weights alone, not on norms and biases."""
    clip_norm: float | None = None
    accumulate: int = 1
    """Parts that a step's batch is cut into, where memory does not hold it whole."""
    precision: Precision = "fp32"
    """Of the forward pass, by autocast; the loss and the weights are float32."""
    ema: float | None = None
    """Decay of the weights' moving average, which is evaluated beside the weights themselves."""

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    resize_mode: ResizeMode = "crop"
    crop_pct: float = 1.0
    crop_area: tuple[float, float] | None = None
    mirror: bool = True
    policy: Policy = "none"
    cutout: float = 0.0

    def preprocessing(self) -> Preprocessing:
        """How pictures are prepared for evaluation and for serving."""
        return Preprocessing(image_size=self.image_size, resize_mode=self.resize_mode, crop_pct=self.crop_pct)

    def fitted(self, pictures: int, processes: int = 1) -> Recipe:
        """The recipe for so many training pictures; a batch can still be cut into the parts of an accumulated step."""
        batch_size, parts = self.batch_size, processes * self.accumulate
        while self.fits_small_data and batch_size >= 16 and batch_size // 2 % parts == 0:
            steps_are_few, norms_have_enough = pictures < 8 * batch_size, batch_size // 2 >= 8 * parts
            if not (steps_are_few and norms_have_enough) and pictures >= batch_size:
                break
            batch_size //= 2
        return replace(self, batch_size=batch_size)

    def augmentation(self, how: Preprocessing) -> Augmentation:
        """How training varies them."""
        return Augmentation(how, self.crop_area, self.mirror, self.policy, self.cutout)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits",
            task="classify",
            expected="tresnet train digits: two CPU cores, 75 seconds, 99 % top-1 on 360 held-out digits",
            image_size=32,
            batch_size=64,
            epochs=6,
            label_smoothing=0.1,
        ),
        Recipe(
            name="multidigits",
            task="tag",
            expected="tresnet train multidigits: two CPU cores, under three minutes, 99 % mAP on 500 held-out canvases",
            image_size=48,
            batch_size=64,
            epochs=8,
            pictures_per_epoch=1408,
            learning_rate=4e-3,
        ),
        Recipe(
            name="fashion",
            task="classify",
            expected="tresnet train fashion: Debian's dataset-fashion-mnist, two CPU cores, 16 minutes, 88.6 % top-1",
            image_size=32,
            batch_size=64,
            epochs=2,
            label_smoothing=0.1,
        ),
        Recipe(
            name="imagenet",
            task="classify",
            expected=(
                "torchrun --nproc-per-node 8 --no-python tresnet train imagenet --data DIR: 8 V100, under a day, "
                "80.8 % top-1 with M, 81.5 % with L, 82.0 % with XL (the paper's)"
            ),
            image_size=224,
            batch_size=1536,
            epochs=300,
            optimizer="sgd",
            learning_rate=0.6,
            rise=0.1,
            label_smoothing=0.1,
            precision="fp16",
            ema=0.9999,
            mixup=0.2,
            crop_pct=0.875,
            crop_area=(0.08, 1.0),
            policy="auto",
            cutout=0.5,
        ),
        Recipe(
            name="imagenet_448",
            task="classify",
            expected=(
                "torchrun --nproc-per-node 8 --no-python tresnet train imagenet_448 --data DIR --init runs/imagenet/"
                "best.pt: 8 V100, a few hours, 83.2 % top-1 with M, 83.8 % with L, 84.3 % with XL (the paper's)"
            ),
            image_size=448,
            batch_size=384,
            epochs=10,
            wants_init=True,
            optimizer="sgd",
            learning_rate=0.015,
            rise=0.1,
            label_smoothing=0.1,
            precision="fp16",
            ema=0.9997,
            resize_mode="squash",
            crop_area=(0.25, 1.0),
            policy="auto",
        ),
        Recipe(
            name="transfer",
            task="classify",
            expected=(
                "tresnet train transfer --data DIR --init CHECKPOINT: any folder of labelled pictures; one GPU, "
                "an hour for CIFAR-10 (99.0 % with XL), Cars (96.0 % with L at 368) or Flowers (99.1 %; the paper's)"
            ),
            image_size=224,
            batch_size=64,
            epochs=80,
            fits_small_data=True,
            wants_init=True,
            optimizer="adamw",
            learning_rate=2e-4,
            rise=0.1,
            label_smoothing=0.1,
            ema=0.9997,
            clip_norm=1.0,
            resize_mode="squash",
            crop_area=(0.4, 1.0),
            policy="rand",
            cutout=0.3,
        ),
        Recipe(
            name="coco",
            task="tag",
            expected=(
                "tresnet train coco --data DIR --init CHECKPOINT --arch tresnet_l: one V100, a day, 86.6 % mAP with L "
                "at 448 from ImageNet weights, 81.8 % with M at 224 from ImageNet-21k's (ASL's)"
            ),
            image_size=448,
            batch_size=128,
            epochs=40,
            wants_init=True,
            optimizer="adam",
            learning_rate=1e-4,
            rise=0.2,
            precision="fp16",
            ema=0.9997,
            resize_mode="squash",
            policy="rand",
            cutout=0.5,
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        UserError: if there is none, naming those that are.
    """
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
