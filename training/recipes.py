"""The recipes: each a few values that train one model, with what to expect of it."""

from __future__ import annotations

from dataclasses import dataclass

from tresnet.contract import Task
from tresnet.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """A training run but for its data folder and its seed."""

    name: str
    task: Task
    expected: str
    """Command, hardware, time and score."""
    image_size: int
    batch_size: int
    epochs: int
    pictures_per_epoch: int | None = None
    """None: every training picture once."""
    arch: str = "tresnet_m"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0


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
            image_size=40,
            batch_size=64,
            epochs=8,
            pictures_per_epoch=1408,
            learning_rate=2e-3,
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
